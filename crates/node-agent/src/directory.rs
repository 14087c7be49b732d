//! What streams reach of each instance of this node: its log, and while it has a VM, its guest.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, PoisonError};

use model::{InstanceId, ProcessName};

use crate::guest_calls::GuestCalls;
use crate::logs::InstanceLog;

/// The instances of this node by id. Cheap to clone; all clones are one directory.
#[derive(Debug, Clone, Default)]
pub struct Directory(Arc<Mutex<BTreeMap<InstanceId, Entry>>>);

/// One instance.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) process: ProcessName,
    pub(crate) log: Arc<InstanceLog>,
    pub(crate) guest: Option<Guest>,
}

/// The guest of an instance that has a VM.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) calls: GuestCalls,
    /// Its address in the cluster.
    pub(crate) address: Ipv6Addr,
}

impl Directory {
    /// Makes an instance's log readable.
    pub(crate) fn add(&self, id: InstanceId, process: ProcessName, log: Arc<InstanceLog>) {
        let entry = Entry {
            process,
            log,
            guest: None,
        };
        self.with(|entries| entries.insert(id, entry));
    }

    /// The instance has a guest that can be called; absent: it has none any more.
    pub(crate) fn set_guest(&self, id: InstanceId, guest: Option<Guest>) {
        self.with(|entries| {
            if let Some(entry) = entries.get_mut(&id) {
                entry.guest = guest;
            }
        });
    }

    /// The instance is gone.
    pub(crate) fn remove(&self, id: InstanceId) {
        self.with(|entries| entries.remove(&id));
    }

    pub(crate) fn get(&self, id: InstanceId) -> Option<Entry> {
        self.with(|entries| entries.get(&id).cloned())
    }

    /// The calls of the instance's guest.
    ///
    /// # Errors
    /// For people: the instance is not here or does not run.
    pub(crate) fn calls(&self, id: InstanceId) -> Result<GuestCalls, String> {
        self.guest(id).map(|guest| guest.calls)
    }

    /// The instance's guest.
    ///
    /// # Errors
    /// For people: the instance is not here or does not run.
    pub(crate) fn guest(&self, id: InstanceId) -> Result<Guest, String> {
        match self.get(id) {
            None => Err(format!("instance {id} is not on this node")),
            Some(Entry { guest: None, .. }) => {
                Err(format!("instance {id} does not run at the moment"))
            }
            Some(Entry {
                guest: Some(guest), ..
            }) => Ok(guest),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<InstanceId, Entry>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
