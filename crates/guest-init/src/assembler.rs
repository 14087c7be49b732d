//! Writes BPF programs ([`crate::bpf`]): instructions as the kernel reads them (its Documentation,
//! bpf/instruction-set), and jumps to labels further down.

use std::os::fd::AsRawFd as _;

use crate::sys::BpfMap;

/// The kernel's functions that programs call, by number.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Helper {
    MapLookup = 1,
    MapUpdate = 2,
    SockOpsFlagsSet = 59,
    SkRelease = 86,
    NetnsCookie = 122,
    SkAssign = 124,
}

/// Registers. R0 has results, R1 to R5 are arguments, R6 to R9 outlive calls, R10 is the end of the stack.
pub(crate) type Register = u8;
pub(crate) const R0: Register = 0;
pub(crate) const R1: Register = 1;
pub(crate) const R2: Register = 2;
pub(crate) const R3: Register = 3;
pub(crate) const R4: Register = 4;
pub(crate) const R6: Register = 6;
pub(crate) const R7: Register = 7;
pub(crate) const R9: Register = 9;
pub(crate) const R10: Register = 10;

/// A place in a program to jump to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Label {
    End,
    Stranger,
    Private,
    Steer,
    Passive,
    State,
    Listen,
    Classify,
    Ipv6,
    Ipv4,
    CountIpv4,
    CountLoopback,
    Own,
    Apply,
    Add,
    Remove,
}

/// A program being written.
#[derive(Default)]
pub(crate) struct Assembler {
    instructions: Vec<[u8; 8]>,
    labels: Vec<(Label, usize)>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn emit(&mut self, code: u8, destination: Register, source: Register, offset: i16, value: i32) {
        let [low, high] = offset.to_le_bytes();
        let [a, b, c, d] = value.to_le_bytes();
        self.instructions
            .push([code, source << 4 | destination, low, high, a, b, c, d]);
    }

    /// `destination = *(u32 *)(source + offset)`
    pub(crate) fn load(&mut self, destination: Register, source: Register, offset: i16) {
        self.emit(0x61, destination, source, offset, 0);
    }

    /// `*(u32 *)(destination + offset) = source`
    pub(crate) fn store(&mut self, destination: Register, offset: i16, source: Register) {
        self.emit(0x63, destination, source, offset, 0);
    }

    /// `*(u32 *)(destination + offset) = value`
    pub(crate) fn store_value(&mut self, destination: Register, offset: i16, value: i32) {
        self.emit(0x62, destination, 0, offset, value);
    }

    /// `destination = source`
    pub(crate) fn copy(&mut self, destination: Register, source: Register) {
        self.emit(0xbf, destination, source, 0, 0);
    }

    /// `destination = value`
    pub(crate) fn set(&mut self, destination: Register, value: i32) {
        self.emit(0xb7, destination, 0, 0, value);
    }

    /// `destination += value`
    pub(crate) fn add(&mut self, destination: Register, value: i32) {
        self.emit(0x07, destination, 0, 0, value);
    }

    /// `destination += source`
    pub(crate) fn add_register(&mut self, destination: Register, source: Register) {
        self.emit(0x0f, destination, source, 0, 0);
    }

    /// `destination |= source`
    pub(crate) fn or_register(&mut self, destination: Register, source: Register) {
        self.emit(0x4f, destination, source, 0, 0);
    }

    /// `destination &= value`
    pub(crate) fn and(&mut self, destination: Register, value: i32) {
        self.emit(0x57, destination, 0, 0, value);
    }

    /// `destination |= value`
    pub(crate) fn or(&mut self, destination: Register, value: i32) {
        self.emit(0x47, destination, 0, 0, value);
    }

    /// `lock *(u32 *)destination += source`
    pub(crate) fn atomic_add(&mut self, destination: Register, source: Register) {
        self.emit(0xc3, destination, source, 0, 0);
    }

    /// `destination = value`, of 64 bits.
    pub(crate) fn set_wide(&mut self, destination: Register, kind: u8, value: u64) {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.emit(0x18, destination, kind, 0, i32::from_le_bytes([a, b, c, d]));
        self.emit(0, 0, 0, 0, i32::from_le_bytes([e, f, g, h]));
    }

    /// `destination = map`
    pub(crate) fn set_map(&mut self, destination: Register, map: &BpfMap) {
        let fd = u64::try_from(map.as_fd().as_raw_fd()).unwrap_or(u64::MAX);
        self.set_wide(destination, 1, fd);
    }

    pub(crate) fn call(&mut self, helper: Helper) {
        self.emit(0x85, 0, 0, 0, helper as i32);
    }

    pub(crate) fn goto(&mut self, label: Label) {
        self.jump(0x05, 0, 0, label);
    }

    /// Jumps if the low 32 bits of the register equal the value.
    pub(crate) fn goto_if_equal(&mut self, register: Register, value: i32, label: Label) {
        self.jump(0x16, register, value, label);
    }

    /// Jumps unless the low 32 bits of the register equal the value.
    pub(crate) fn goto_if_not_equal(&mut self, register: Register, value: i32, label: Label) {
        self.jump(0x56, register, value, label);
    }

    /// Jumps if the register, a pointer, is null.
    pub(crate) fn goto_if_null(&mut self, register: Register, label: Label) {
        self.jump(0x15, register, 0, label);
    }

    /// Jumps unless the register, a pointer, is null.
    pub(crate) fn goto_unless_null(&mut self, register: Register, label: Label) {
        self.jump(0x55, register, 0, label);
    }

    /// Jumps unless the registers are equal.
    pub(crate) fn goto_if_different(&mut self, left: Register, right: Register, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.emit(0x5d, left, right, 0, 0);
    }

    fn jump(&mut self, code: u8, register: Register, value: i32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.emit(code, register, 0, 0, value);
    }

    pub(crate) fn label(&mut self, label: Label) {
        self.labels.push((label, self.instructions.len()));
    }

    /// Ends the program with a result.
    pub(crate) fn finish(mut self, result: i32) -> Vec<[u8; 8]> {
        self.label(Label::End);
        self.set(R0, result);
        self.emit(0x95, 0, 0, 0, 0);
        for (at, label) in &self.jumps {
            let target = self.labels.iter().find(|(known, _)| known == label);
            let distance = target.and_then(|(_, target)| target.checked_sub(at + 1));
            // Every label is defined, further down and not far: the kernel refuses a jump to nowhere.
            let distance = distance.and_then(|distance| i16::try_from(distance).ok());
            let [low, high] = distance.unwrap_or(i16::MAX).to_le_bytes();
            self.instructions[*at][2] = low;
            self.instructions[*at][3] = high;
        }
        self.instructions
    }
}
