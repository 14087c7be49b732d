//! From a question's bytes to the answer's. Pure.
//!
//! The domain `internal` is the cluster's: it is answered here and never forwarded, whether or not a name exists. So are the reverse names of
//! the cluster's addresses. Everything else goes to the machine's name servers, as it came.

use std::net::Ipv4Addr;

use guest_protocol::INTERNAL_DOMAIN;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use model::InstanceId;
use model::instance::EgressPolicy;
use overlay::address_plan;

use crate::names::{Found, MIN_TTL_SECONDS, NamedInstance, Names, ProcessNames, Service};

/// Length of a message's header, in bytes (RFC 1035, 4.1.1).
const HEADER_BYTES: usize = 12;
/// Longest message over UDP to who says nothing of it (RFC 1035, 4.2.1), in bytes.
const PLAIN_UDP_BYTES: usize = 512;
/// Longest message over UDP to who takes more (DNS flag day 2020: none is fragmented), in bytes.
const EDNS_UDP_BYTES: usize = 1232;
/// Longest message over TCP, in bytes.
const TCP_BYTES: usize = 65535;
/// Length of the record that says how EDNS is spoken, without options, in bytes (RFC 6891, 6.1.2).
const OPT_BYTES: usize = 11;
/// Length of a record's type, class, TTL and length of data, in bytes.
const RECORD_HEAD_BYTES: usize = 10;
/// The name of the question, as a pointer to it (RFC 1035, 4.1.4).
const POINTER_TO_QUESTION: [u8; 2] = [0xc0, HEADER_BYTES as u8];
/// An option with an extended error (RFC 8914): `Prohibited`, who asks may not know (4.19), and why.
const PROHIBITED: &[u8] = b"\0\x0f\0\x11\0\x12egress = \"none\"";
/// Most questions in a message that is parsed.
const QUESTIONS: usize = 1;

/// By which transport it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Answers are cut where they are too long.
    Udp,
    /// Answers are whole.
    Tcp,
}

/// What is to be done with a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// Send this.
    Answer(Vec<u8>),
    /// Ask the machine's name servers, and send on what they answer.
    Forward,
    /// Nothing: it is no question.
    Drop,
}

/// Decides on a question of `from`. `turn`: another number each time; it says which instance is named first. `now_ms`: monotonic, in
/// milliseconds.
pub fn decide(
    names: &Names,
    from: Ipv4Addr,
    transport: Transport,
    bytes: &[u8],
    turn: usize,
    now_ms: u64,
) -> Decision {
    // Who answers answers lets itself be played against others.
    if bytes.len() < HEADER_BYTES || bytes[2] & 0x80 != 0 {
        return Decision::Drop;
    }
    if bytes[2] >> 3 & 0xf != 0 {
        return Decision::Answer(refusal(bytes, ResponseCode::NotImp));
    }
    if usize::from(u16::from_be_bytes([bytes[4], bytes[5]])) != QUESTIONS {
        return Decision::Answer(refusal(bytes, ResponseCode::FormErr));
    }
    let Ok(asked) = Message::from_vec(bytes) else {
        return Decision::Answer(refusal(bytes, ResponseCode::FormErr));
    };
    let (Some(question), Some(end)) = (asked.queries.first(), question_end(bytes)) else {
        return Decision::Answer(refusal(bytes, ResponseCode::FormErr));
    };
    let mut answer = Reply::new(&asked, &bytes[..end], transport);
    if asked.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return answer.with_code(ResponseCode::BADVERS);
    }
    let Some(client) = names.client(from) else {
        // An instance that was just made, most likely: it asks again.
        return answer.with_code(ResponseCode::ServFail);
    };
    let lower = question.name().to_lowercase();
    let mut labels = Vec::with_capacity(8);
    for label in &lower {
        // No name of ours has other bytes.
        labels.push(std::str::from_utf8(label).unwrap_or("?"));
    }
    labels.reverse();
    let asking = address_plan::env_network(client.address);
    let found = names.look_up(asking, &labels);
    if matches!(found, Found::External) {
        // The way the C library of many images takes a refusal is to ask again until it gives up: only this answer fails at once.
        if client.egress == EgressPolicy::None {
            return answer.prohibited();
        }
        return Decision::Forward;
    }
    answer.is_authoritative = true;
    if !matches!(question.query_class(), DNSClass::IN | DNSClass::ANY) {
        return answer.with_code(ResponseCode::Refused);
    }
    if matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR) {
        return answer.with_code(ResponseCode::Refused);
    }
    answer.of(found, question.query_type(), turn, now_ms)
}

/// The answer to what cannot be read, or is not for us: its header and nothing else.
fn refusal(asked: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[..2].copy_from_slice(&asked[..2]);
    // An answer, of the operation that was asked for and with its "recursion desired".
    bytes[2] = 0x80 | asked[2] & 0x79;
    bytes[3] = 0x80 | code.low();
    bytes
}

/// The answer that there is none, to a question that was to be forwarded.
pub fn failure(asked: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_vec(asked).ok()?;
    let reply = Reply::new(&message, &asked[..question_end(asked)?], Transport::Udp);
    Some(reply.finish(ResponseCode::ServFail))
}

/// Where the one question of a message ends.
pub(crate) fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER_BYTES;
    loop {
        match *message.get(at)? {
            0 => break,
            length @ 1..64 => at += 1 + usize::from(length),
            // A name that points elsewhere: nobody asks so.
            _ => return None,
        }
    }
    // The name's end, its type and class.
    let end = at + 1 + 4;
    (end <= message.len()).then_some(end)
}

/// An answer being made. Its records are written here, because all their names are the question's or a few of ours, and their sizes decide what fits.
struct Reply {
    /// The header, the question and the records so far.
    bytes: Vec<u8>,
    /// Longest message, in bytes, without the record of EDNS.
    limit: usize,
    speaks_edns: bool,
    /// Options of EDNS.
    options: &'static [u8],
    is_authoritative: bool,
    is_truncated: bool,
    answers: u16,
    authorities: u16,
    additionals: u16,
}

impl Reply {
    /// `question`: the message that was asked, up to the end of its question.
    fn new(asked: &Message, question: &[u8], transport: Transport) -> Self {
        let limit = match (&asked.edns, transport) {
            (_, Transport::Tcp) => TCP_BYTES,
            (None, Transport::Udp) => PLAIN_UDP_BYTES,
            (Some(edns), Transport::Udp) => {
                usize::from(edns.max_payload()).clamp(PLAIN_UDP_BYTES, EDNS_UDP_BYTES)
            }
        };
        let speaks_edns = asked.edns.is_some();
        Self {
            bytes: question.to_vec(),
            limit: limit - if speaks_edns { OPT_BYTES } else { 0 },
            speaks_edns,
            options: b"",
            is_authoritative: false,
            is_truncated: false,
            answers: 0,
            authorities: 0,
            additionals: 0,
        }
    }

    fn finish(mut self, code: ResponseCode) -> Vec<u8> {
        let code = u16::from(code);
        if self.speaks_edns {
            self.additionals += 1;
            let payload = (EDNS_UDP_BYTES as u16).to_be_bytes();
            // The root's name, the type OPT, how long an answer we take, the code's upper bits, version 0, no flags.
            self.bytes.extend_from_slice(&[0, 0, 41]);
            self.bytes.extend_from_slice(&payload);
            self.bytes.extend_from_slice(&[(code >> 4) as u8, 0, 0, 0]);
            self.bytes
                .extend_from_slice(&(self.options.len() as u16).to_be_bytes());
            self.bytes.extend_from_slice(self.options);
        }
        let flag = |is: bool, bit: u8| if is { bit } else { 0 };
        // An answer: authoritative, truncated, "recursion desired" as asked; recursion is available, "checking disabled" as asked.
        let asked = [self.bytes[2], self.bytes[3]];
        self.bytes[2] =
            0x80 | flag(self.is_authoritative, 4) | flag(self.is_truncated, 2) | asked[0] & 1;
        self.bytes[3] = 0x80 | asked[1] & 0x10 | (code & 0xf) as u8;
        let counts = [1, self.answers, self.authorities, self.additionals];
        for (at, count) in counts.into_iter().enumerate() {
            let at = 4 + 2 * at;
            self.bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        self.bytes
    }

    fn with_code(self, code: ResponseCode) -> Decision {
        Decision::Answer(self.finish(code))
    }

    /// There is no such name, because who asks may not know of it.
    fn prohibited(mut self) -> Decision {
        self.options = PROHIBITED;
        self.with_code(ResponseCode::NXDomain)
    }

    fn of(mut self, found: Found<'_>, asked: RecordType, turn: usize, now_ms: u64) -> Decision {
        // To answer ANY with one kind of record is enough (RFC 8482).
        let wants = |kind| asked == kind || asked == RecordType::ANY;
        let mut code = ResponseCode::NoError;
        match found {
            Found::Absent => code = ResponseCode::NXDomain,
            Found::Unknown => return self.with_code(ResponseCode::ServFail),
            Found::Apex if asked == RecordType::SOA => {
                let zone = POINTER_TO_QUESTION;
                self.answer(RecordType::SOA, MIN_TTL_SECONDS, &start_of_authority(&zone));
            }
            Found::Process(process) if wants(RecordType::AAAA) => {
                let ttl = process.ttl(now_ms);
                for (_, instance) in in_turn(process, turn) {
                    self.answer(RecordType::AAAA, ttl, &instance.address.octets());
                }
            }
            Found::Instance(process, id) if wants(RecordType::AAAA) => {
                if let Some(instance) = process.get(id).filter(|instance| instance.ready) {
                    self.answer(
                        RecordType::AAAA,
                        process.ttl(now_ms),
                        &instance.address.octets(),
                    );
                }
            }
            Found::Process(process) if asked == RecordType::SRV => {
                self.services(process, in_turn(process, turn), None, now_ms);
            }
            Found::Service(process, service) if wants(RecordType::SRV) => {
                self.services(process, in_turn(process, turn), Some(service), now_ms);
            }
            Found::Instance(process, id) if asked == RecordType::SRV => {
                let instance = process.get(id).filter(|instance| instance.ready);
                let instance = instance.map(|instance| (id, instance));
                self.services(process, instance.into_iter().collect(), None, now_ms);
            }
            Found::Address(process, id) if wants(RecordType::PTR) => {
                if let Some(instance) = process.get(id) {
                    self.answer(
                        RecordType::PTR,
                        process.ttl(now_ms),
                        &instance_name(id, instance),
                    );
                }
            }
            // The name is there, and has nothing of this kind.
            _ => {}
        }
        if self.answers == 0 && !self.is_truncated {
            // For how long that may be kept (RFC 2308).
            let zone = name(&[INTERNAL_DOMAIN]);
            let data = start_of_authority(&zone);
            if self.push(&zone, RecordType::SOA, MIN_TTL_SECONDS, &data) {
                self.authorities += 1;
            }
        }
        self.with_code(code)
    }

    /// Where services are, and the addresses of who has them, as far as those fit.
    fn services(
        &mut self,
        process: &ProcessNames,
        instances: Vec<(InstanceId, &NamedInstance)>,
        which: Option<Service>,
        now_ms: u64,
    ) {
        let ttl = process.ttl(now_ms);
        let mut targets = Vec::new();
        for (id, instance) in instances {
            let target = instance_name(id, instance);
            let is_meant = |port: &&_| which.is_none_or(|which| which.has(**port));
            let mut is_named = false;
            for port in instance.ports.iter().filter(is_meant) {
                is_named = true;
                // Priority 0, weight 1: all the same.
                let mut data = vec![0, 0, 0, 1];
                data.extend_from_slice(&port.port.to_be_bytes());
                // Never shortened (RFC 2782).
                data.extend_from_slice(&target);
                self.answer(RecordType::SRV, ttl, &data);
            }
            if is_named {
                targets.push((target, instance.address));
            }
        }
        for (target, address) in targets {
            if self.is_truncated || !self.push(&target, RecordType::AAAA, ttl, &address.octets()) {
                break;
            }
            self.additionals += 1;
        }
    }

    /// Adds an answer, or says that there are more than fit.
    fn answer(&mut self, kind: RecordType, ttl: u32, data: &[u8]) {
        if self.is_truncated || !self.push(&POINTER_TO_QUESTION, kind, ttl, data) {
            self.is_truncated = true;
        } else {
            self.answers += 1;
        }
    }

    /// Adds a record where it fits.
    fn push(&mut self, name: &[u8], kind: RecordType, ttl: u32, data: &[u8]) -> bool {
        let length = name.len() + RECORD_HEAD_BYTES + data.len();
        let (Ok(data_length), true) = (
            u16::try_from(data.len()),
            self.bytes.len() + length <= self.limit,
        ) else {
            return false;
        };
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(&u16::from(kind).to_be_bytes());
        self.bytes
            .extend_from_slice(&u16::from(DNSClass::IN).to_be_bytes());
        self.bytes.extend_from_slice(&ttl.to_be_bytes());
        self.bytes.extend_from_slice(&data_length.to_be_bytes());
        self.bytes.extend_from_slice(data);
        true
    }
}

/// The instances that are ready, another one first each time.
fn in_turn(process: &ProcessNames, turn: usize) -> Vec<(InstanceId, &NamedInstance)> {
    let mut ready: Vec<_> = process.ready().collect();
    if !ready.is_empty() {
        let first = turn % ready.len();
        ready.rotate_left(first);
    }
    ready
}

/// `<instance>.<process>.<env>.<app>.internal.`
fn instance_name(id: InstanceId, instance: &NamedInstance) -> Vec<u8> {
    let (app, env, process) = (&instance.app, &instance.env, &instance.process);
    name(&[
        &id.to_string(),
        process.as_str(),
        env.as_str(),
        app.as_str(),
        INTERNAL_DOMAIN,
    ])
}

/// What stands in the record of the zone's authority.
fn start_of_authority(zone: &[u8]) -> Vec<u8> {
    let mut data = zone.to_vec();
    // Whom to write to: nobody.
    data.extend(name(&["nobody", "invalid"]));
    // Serial number, refresh, retry, expiry, and how long an answer that there is nothing may be kept.
    for number in [1, 1, 1, 1, MIN_TTL_SECONDS] {
        data.extend(number.to_be_bytes());
    }
    data
}

/// A name on the wire. Its labels are at most 63 bytes long: they are names of ours.
fn name(labels: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    for label in labels {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}
