//! How many VMs of this node boot at a time.
//!
//! A boot costs a processor for seconds, and the page cache of what it reads. Without a bound, the boots of a machine that
//! came back take each other's time, and all of them take as long as the sum. The others wait prepared, in the order
//! in which they were.

use std::sync::Arc;

use api::enrollment::Hardware;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Boots at a time for each processor.
const BOOTS_PER_PROCESSOR: u64 = 1;
/// Memory for which there is one boot at a time, in bytes: what a small guest and its VMM take.
const MEMORY_PER_BOOT: u64 = 512 << 20;
/// Fewest boots at a time: one that hangs does not hold up all others.
const MIN_BOOTS: u64 = 2;
/// Most boots at a time.
const MAX_BOOTS: u64 = 64;

/// The slots for boots.
#[derive(Debug, Clone)]
pub(crate) struct BootSlots {
    slots: Arc<Semaphore>,
    count: usize,
}

/// One boot under way. Dropping it lets the next one begin.
pub(crate) type BootSlot = OwnedSemaphorePermit;

impl BootSlots {
    /// As many as this machine can carry.
    pub(crate) fn of(hardware: &Hardware) -> Self {
        let by_processors = u64::from(hardware.cpus) * BOOTS_PER_PROCESSOR;
        let by_memory = hardware.memory_bytes / MEMORY_PER_BOOT;
        let count = by_processors.min(by_memory).clamp(MIN_BOOTS, MAX_BOOTS);
        let count = usize::try_from(count).unwrap_or(1);
        Self {
            slots: Arc::new(Semaphore::new(count)),
            count,
        }
    }

    /// Waits for a slot; `waiting` is told why, where there is none. Cancel-safe.
    pub(crate) async fn acquire(&self, waiting: impl FnOnce(String)) -> Option<BootSlot> {
        if let Some(slot) = self.try_acquire() {
            return Some(slot);
        }
        waiting(format!(
            "waiting for {} other boots of this node",
            self.count
        ));
        // It is never closed.
        self.slots.clone().acquire_owned().await.ok()
    }

    /// A slot, if there is one.
    pub(crate) fn try_acquire(&self) -> Option<BootSlot> {
        self.slots.clone().try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn hardware(cpus: u32, gibibytes: u64) -> Hardware {
        Hardware {
            arch: "amd64".to_owned(),
            cpus,
            memory_bytes: gibibytes << 30,
            ..Hardware::default()
        }
    }

    #[test]
    fn case_boots_at_a_time_follow_from_processors_and_memory() {
        for (cpus, gibibytes, expected) in [
            (1, 1, 2),
            (2, 16, 2),
            (16, 64, 16),
            (16, 4, 8),
            (256, 1024, 64),
        ] {
            assert_eq!(BootSlots::of(&hardware(cpus, gibibytes)).count, expected);
        }
    }

    #[tokio::test]
    async fn a_boot_waits_for_its_slot_and_says_so() {
        let slots = BootSlots::of(&hardware(2, 4));
        let first = slots.acquire(|_| panic!("there is one")).await.unwrap();
        let _second = slots.try_acquire().unwrap();
        assert!(slots.try_acquire().is_none());
        let (told, said) = tokio::sync::oneshot::channel();
        let waiting = tokio::spawn({
            let slots = slots.clone();
            async move { slots.acquire(|why| told.send(why).unwrap()).await }
        });
        assert_eq!(
            said.await.unwrap(),
            "waiting for 2 other boots of this node"
        );
        assert!(!waiting.is_finished());
        drop(first);
        assert!(waiting.await.unwrap().is_some());
    }
}
