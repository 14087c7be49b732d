//! What is known of users' tokens beside the cluster state: whose one is, for servers that do not lead, and when each was last used.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{Timestamp, UserName};
use scheduler::access::{UserRecord, UserToken};
use scheduler::cluster_state::TokenHash;
use store::Store;
use tokio::time::{Instant, timeout};

use crate::failure::ApiFailure;
use crate::limits::{MAX_USERS_KNOWN, USER_KNOWN_FOR, USER_LOOKUP_TIMEOUT};

/// The users, as the store has them. What the store said is good for a moment: a user who asks often costs it nothing.
#[derive(Debug, Clone)]
pub(crate) struct Users {
    store: Store,
    known: Arc<Mutex<BTreeMap<TokenHash, Known>>>,
    used: Arc<Mutex<BTreeMap<TokenHash, Timestamp>>>,
}

#[derive(Debug, Clone)]
struct Known {
    name: UserName,
    until: Instant,
}

impl Users {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            known: Arc::default(),
            used: Arc::default(),
        }
    }

    /// The user whose token has this hash, for the share of connections: what the token opens is for the leader to say. Only what is there is
    /// remembered.
    pub(crate) async fn of_token(&self, hash: &TokenHash) -> Result<Option<UserName>, ApiFailure> {
        let now = Instant::now();
        if let Some(known) = lock(&self.known)
            .get(hash)
            .filter(|known| known.until > now)
        {
            return Ok(Some(known.name.clone()));
        }
        let Some((token, _)) = self.stored(hash).await? else {
            return Ok(None);
        };
        let name = token.user;
        let mut known = lock(&self.known);
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

    /// The token with this hash, as the store has it.
    pub(crate) async fn stored(
        &self,
        hash: &TokenHash,
    ) -> Result<Option<(UserToken, Option<UserRecord>)>, ApiFailure> {
        let asked = timeout(USER_LOOKUP_TIMEOUT, self.store.user_token(hash)).await;
        Ok(asked.map_err(|_| ApiFailure::no_store())??)
    }

    /// The token let in just now.
    pub(crate) fn used(&self, hash: &TokenHash, now: Timestamp) {
        lock(&self.used).insert(*hash, now);
    }

    /// When the token last let in, since this server began to lead.
    pub(crate) fn used_at(&self, hash: &TokenHash) -> Option<Timestamp> {
        lock(&self.used).get(hash).copied()
    }

    /// The token lets nobody in any more.
    pub(crate) fn remove(&self, hash: &TokenHash) {
        lock(&self.used).remove(hash);
        lock(&self.known).remove(hash);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
