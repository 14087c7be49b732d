//! What is read from the TUN device: a packet, or one of many segments, which is cut into packets here.
//!
//! The kernel gives segments of any size, and so any number of them at once: what is more than [`AT_ONCE`] is cut in turns, so that small segments
//! need no more memory than large ones.

use std::io;
use std::ops::Range;

use tun_rs::{
    SyncDevice, VIRTIO_NET_HDR_GSO_UDP_L4, VIRTIO_NET_HDR_LEN, VirtioNetHdr, checksum, gso_split,
};

use crate::options::MAX_MTU;

/// The largest packet that the TUN device gives, in bytes.
pub(crate) const MAX_BYTES: usize = 65_535;
/// Segments that are cut at once. All of those together are longer than the headers, whatever their size.
const AT_ONCE: usize = 128;

/// `VIRTIO_NET_HDR_GSO_NONE`, `VIRTIO_NET_HDR_F_NEEDS_CSUM` and `VIRTIO_NET_HDR_GSO_ECN` of virtio.
const ONE_PACKET: u8 = 0;
const NEEDS_CHECKSUM: u8 = 1;
const WITH_ECN: u8 = 0x80;

/// Of a TCP header: where things are, and flags.
const SEQUENCE: usize = 4;
const HEADER_LENGTH: usize = 12;
const FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
const UDP_HEADER: usize = 8;

/// What is read from the TUN device.
pub(crate) struct FromTun {
    whole: Vec<u8>,
    /// What of that is not given yet.
    rest: Range<usize>,
    /// How it is cut. Absent: it is one packet.
    cut: Option<VirtioNetHdr>,
    packets: Vec<Vec<u8>>,
    lengths: Vec<usize>,
}

impl FromTun {
    /// Room for packets of any MTU.
    pub(crate) fn new() -> Self {
        let room = || vec![0; usize::from(MAX_MTU)];
        Self {
            whole: vec![0; VIRTIO_NET_HDR_LEN + MAX_BYTES],
            rest: 0..0,
            cut: None,
            packets: std::iter::repeat_with(room).take(AT_ONCE).collect(),
            lengths: vec![0; AT_ONCE],
        }
    }

    /// Reads from the device. `offload`: what it gives has a header of virtio.
    ///
    /// # Errors
    /// That of the device; nothing is there, as a rule. [`io::ErrorKind::InvalidData`]: what is there cannot be cut.
    pub(crate) fn read(&mut self, tun: &SyncDevice, offload: bool) -> io::Result<()> {
        self.rest = 0..0;
        let read = tun.recv(&mut self.whole)?;
        self.take(read, offload)
    }

    fn take(&mut self, read: usize, offload: bool) -> io::Result<()> {
        self.rest = 0..0;
        self.cut = None;
        if !offload {
            self.rest = 0..read;
            return Ok(());
        }
        let (header, packet) = self.whole[..read]
            .split_at_mut_checked(VIRTIO_NET_HDR_LEN)
            .ok_or_else(invalid)?;
        let mut header = VirtioNetHdr::decode(header)?;
        if header.gso_type != ONE_PACKET {
            header.hdr_len = headers(&header, packet).ok_or_else(invalid)?;
            self.cut = Some(header);
        } else if header.flags & NEEDS_CHECKSUM != 0 {
            complete_checksum(&header, packet).ok_or_else(invalid)?;
        }
        self.rest = VIRTIO_NET_HDR_LEN..read;
        Ok(())
    }

    /// The next packets of what was read; none where all were given.
    ///
    /// # Errors
    /// It cannot be cut.
    pub(crate) fn packets(&mut self) -> io::Result<impl Iterator<Item = &[u8]>> {
        let (mut one, mut many) = (None, 0);
        let rest = std::mem::replace(&mut self.rest, 0..0);
        if let Some(header) = &self.cut {
            if !rest.is_empty() {
                many = self.cut_some(*header, rest)?;
            }
        } else if !rest.is_empty() {
            one = Some(&self.whole[rest]);
        }
        let lengths = self.lengths[..many].iter();
        let many = self.packets.iter().zip(lengths);
        Ok(one
            .into_iter()
            .chain(many.map(|(packet, len)| &packet[..*len])))
    }

    /// Cuts as many as there is room for, and makes a packet of the rest. Gives how many those are.
    fn cut_some(&mut self, header: VirtioNetHdr, rest: Range<usize>) -> io::Result<usize> {
        let headers = usize::from(header.hdr_len);
        let transport = usize::from(header.csum_start);
        let at_once = AT_ONCE * usize::from(header.gso_size);
        let input = &mut self.whole[rest.clone()];
        let is_tcp = header.gso_type & !WITH_ECN != VIRTIO_NET_HDR_GSO_UDP_L4;
        if input.len() <= headers + at_once || at_once < headers {
            return gso_split(input, header, &mut self.packets, &mut self.lengths, 0, true);
        }
        let flags = input[transport + FLAGS];
        if is_tcp {
            // Those are of the last segment of all.
            input[transport + FLAGS] = flags & !(FIN | PSH);
        }
        let (packets, lengths) = (&mut self.packets, &mut self.lengths);
        let cut = gso_split(
            &mut input[..headers + at_once],
            header,
            packets,
            lengths,
            0,
            true,
        )?;
        // The rest gets headers where the end of what is cut was.
        input.copy_within(..headers, at_once);
        if is_tcp {
            let transport = &mut input[at_once + transport..];
            // And that of the first one.
            transport[FLAGS] = flags & !CWR;
            let (sequence, _) = transport[SEQUENCE..]
                .split_first_chunk_mut()
                .ok_or_else(invalid)?;
            let next =
                u32::from_be_bytes(*sequence).wrapping_add(u32::try_from(at_once).unwrap_or(0));
            *sequence = next.to_be_bytes();
        }
        self.rest = rest.start + at_once..rest.end;
        Ok(cut)
    }
}

/// How long the headers of an IPv6 packet of many segments are. That of virtio may be longer, where the packet is forwarded.
fn headers(header: &VirtioNetHdr, packet: &[u8]) -> Option<u16> {
    let transport = usize::from(header.csum_start);
    let len = if header.gso_type & !WITH_ECN == VIRTIO_NET_HDR_GSO_UDP_L4 {
        UDP_HEADER
    } else {
        let len = usize::from(packet.get(transport + HEADER_LENGTH)? >> 4) * 4;
        if len <= FLAGS {
            return None;
        }
        len
    };
    (transport + len <= packet.len()).then_some(())?;
    u16::try_from(transport + len).ok()
}

/// Completes the checksum of a packet, of which there is the part of the addresses.
fn complete_checksum(header: &VirtioNetHdr, packet: &mut [u8]) -> Option<()> {
    let from = packet.get_mut(usize::from(header.csum_start)..)?;
    let at = usize::from(header.csum_offset);
    let part = from.get_mut(at..at + 2)?;
    let initial = u16::from_be_bytes([part[0], part[1]]);
    part.fill(0);
    let sum = !checksum(from, u64::from(initial));
    from[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    Some(())
}

fn invalid() -> io::Error {
    io::Error::from(io::ErrorKind::InvalidData)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;
    use tun_rs::VIRTIO_NET_HDR_GSO_TCPV6;

    use super::*;

    const IPV6: usize = 40;
    const ACK: u8 = 0x10;

    /// A packet of TCP as the kernel gives it: its checksum is that of the addresses.
    fn whole(options: usize, payload: &[u8], sequence: u32, flags: u8, size: u16) -> Vec<u8> {
        let headers = IPV6 + 20 + options;
        let header = VirtioNetHdr {
            flags: NEEDS_CHECKSUM,
            gso_type: if size == 0 {
                ONE_PACKET
            } else {
                VIRTIO_NET_HDR_GSO_TCPV6
            },
            // As where it is forwarded.
            hdr_len: u16::try_from(headers + usize::from(size)).unwrap(),
            gso_size: size,
            csum_start: 40,
            csum_offset: 16,
        };
        let mut bytes = vec![0; VIRTIO_NET_HDR_LEN];
        header.encode(&mut bytes).unwrap();
        let mut packet = vec![0_u8; headers];
        packet[0] = 0x60;
        let len = u16::try_from(20 + options + payload.len()).unwrap();
        packet[4..6].copy_from_slice(&len.to_be_bytes());
        packet[6] = 6;
        for (number, byte) in packet[8..40].iter_mut().enumerate() {
            *byte = u8::try_from(number * 7).unwrap();
        }
        packet[IPV6 + SEQUENCE..][..4].copy_from_slice(&sequence.to_be_bytes());
        packet[IPV6 + HEADER_LENGTH] = u8::try_from((20 + options) / 4).unwrap() << 4;
        packet[IPV6 + FLAGS] = flags;
        packet[IPV6 + 20..].fill(1);
        let addresses = sum_of_addresses(&packet, len);
        packet[IPV6 + 16..][..2].copy_from_slice(&addresses.to_be_bytes());
        bytes.extend(packet);
        bytes.extend(payload);
        bytes
    }

    fn sum(bytes: &[u8], from: u32) -> u16 {
        let words = bytes.chunks(2);
        let words = words
            .map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low)));
        let mut sum = words.sum::<u32>() + from;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    fn sum_of_addresses(packet: &[u8], len: u16) -> u16 {
        sum(&packet[8..40], u32::from(len) + 6)
    }

    proptest! {
        #[test]
        fn segments_of_any_size_are_what_was_sent(
            options in 0_usize..=10,
            payload in prop::collection::vec(any::<u8>(), 1..65_000),
            sequence: u32,
            flags in prop::sample::select(vec![ACK, ACK | PSH, ACK | FIN, ACK | CWR, ACK | PSH | FIN | CWR]),
            size in prop_oneof![0..2_u16, 2..200_u16, 200..8800_u16],
        ) {
            let options = options * 4;
            // One that is not cut is no longer than the MTU, and has all flags.
            let payload = if size == 0 { &payload[..payload.len().min(8800)] } else { &payload[..] };
            let bytes = whole(options, payload, sequence, flags, size);
            let mut from = FromTun::new();
            from.whole[..bytes.len()].copy_from_slice(&bytes);
            from.take(bytes.len(), true).unwrap();
            let headers = IPV6 + 20 + options;
            let mut received = Vec::new();
            let mut all_flags = Vec::new();
            loop {
                let before = received.len();
                for packet in from.packets().unwrap() {
                    let len = u16::from_be_bytes([packet[4], packet[5]]);
                    prop_assert_eq!(usize::from(len) + IPV6, packet.len());
                    prop_assert_eq!(sum(&packet[IPV6..], u32::from(sum_of_addresses(packet, len))), 0xffff);
                    let at = u32::from_be_bytes(packet[IPV6 + SEQUENCE..][..4].try_into().unwrap());
                    prop_assert_eq!(at, sequence.wrapping_add(u32::try_from(received.len()).unwrap()));
                    prop_assert!(size == 0 || packet.len() <= headers + usize::from(size));
                    all_flags.push(packet[IPV6 + FLAGS]);
                    received.extend_from_slice(&packet[headers..]);
                }
                if received.len() == before {
                    break;
                }
            }
            prop_assert_eq!(&received[..], payload);
            if size > 0 {
                prop_assert_eq!(all_flags.len(), payload.len().div_ceil(usize::from(size)));
            }
            let last = all_flags.len() - 1;
            for (number, of_segment) in all_flags.into_iter().enumerate() {
                let mut expected = flags;
                if number > 0 {
                    expected &= !CWR;
                }
                if number < last {
                    expected &= !(FIN | PSH);
                }
                prop_assert_eq!(of_segment, expected);
            }
        }

        /// A microVM says how its packets are to be cut.
        #[test]
        fn nonsense_is_an_error(
            flags: u8,
            gso_type in prop::sample::select(vec![ONE_PACKET, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4, 0x84, 0x85, 1, 7]),
            gso_size in prop_oneof![0..4_u16, any::<u16>()],
            csum_start in prop_oneof![30..50_u16, any::<u16>()],
            csum_offset in prop_oneof![Just(6_u16), Just(16_u16), any::<u16>()],
            packet in prop::collection::vec(any::<u8>(), 0..3000),
        ) {
            let header = VirtioNetHdr { flags, gso_type, hdr_len: 0, gso_size, csum_start, csum_offset };
            let mut from = FromTun::new();
            header.encode(&mut from.whole).unwrap();
            from.whole[VIRTIO_NET_HDR_LEN..][..packet.len()].copy_from_slice(&packet);
            if from.take(VIRTIO_NET_HDR_LEN + packet.len(), true).is_ok() {
                let mut given = 0;
                while let Ok(count) = from.packets().map(Iterator::count) && count > 0 {
                    given += count;
                }
                prop_assert!(given <= packet.len().max(1));
            }
        }
    }
}
