//! Whose token a request carries. What the store said is good for a moment: a user who asks often costs it nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use scheduler::cluster_state::TokenHash;
use store::Store;
use tokio::time::{Instant, timeout};

use crate::failure::ApiFailure;
use crate::limits::{MAX_USERS_KNOWN, USER_KNOWN_FOR, USER_LOOKUP_TIMEOUT};

/// The users, as the store has them.
#[derive(Debug, Clone)]
pub(crate) struct Users {
    store: Store,
    known: Arc<Mutex<BTreeMap<TokenHash, Known>>>,
}

#[derive(Debug, Clone)]
struct Known {
    name: String,
    until: Instant,
}

impl Users {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            known: Arc::default(),
        }
    }

    /// The name of the user whose token has this hash. Only what is there is remembered.
    pub(crate) async fn of_token(&self, hash: &TokenHash) -> Result<Option<String>, ApiFailure> {
        let now = Instant::now();
        if let Some(known) = self.known().get(hash).filter(|known| known.until > now) {
            return Ok(Some(known.name.clone()));
        }
        let asked = timeout(USER_LOOKUP_TIMEOUT, self.store.user_of_token(hash)).await;
        let asked = asked.map_err(|_| ApiFailure::no_store())?;
        let Some(name) = asked? else {
            return Ok(None);
        };

        let mut known = self.known();
        if known.len() >= MAX_USERS_KNOWN {
            known.retain(|_, known| known.until > now);
        }
        if known.len() < MAX_USERS_KNOWN {
            let until = now + USER_KNOWN_FOR;
            let name = name.clone();
            known.insert(*hash, Known { name, until });
        }
        Ok(Some(name))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<TokenHash, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
