//! Places for the streams of users. There are so many in all; nobody has more than a quarter of them, and the last eighth is for users of the whole cluster, so
//! that no user and no org keeps its operators out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use model::UserName;

use crate::failure::ApiFailure;

/// Places for streams of one kind.
#[derive(Debug)]
pub(crate) struct Slots {
    all: usize,
    taken: Arc<Mutex<BTreeMap<UserName, usize>>>,
}

/// One place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    user: UserName,
    taken: Arc<Mutex<BTreeMap<UserName, usize>>>,
}

impl Slots {
    /// So many places.
    pub(crate) fn new(all: usize) -> Self {
        Self {
            all,
            taken: Arc::default(),
        }
    }

    /// A place for this user. `is_of_cluster`: one with a role in the whole cluster. `code` and `what` say in an error of what there are too many, as in
    /// "too_many_readers" and "logs are read".
    pub(crate) fn take(
        &self,
        user: &UserName,
        is_of_cluster: bool,
        code: &'static str,
        what: &str,
    ) -> Result<Slot, ApiFailure> {
        let (of_one, of_orgs) = (self.all / 4, self.all - self.all / 8);
        let refused = |text: String| {
            ApiFailure::new(StatusCode::TOO_MANY_REQUESTS, code, text)
                .hint("end some, or try again later")
        };
        let mut taken = lock(&self.taken);
        let all: usize = taken.values().sum();
        let own = taken.get(user).copied().unwrap_or_default();
        if own >= of_one {
            return Err(refused(format!(
                "{what} by you {own} times, which is as often as one user may at a time"
            )));
        }
        if all >= if is_of_cluster { self.all } else { of_orgs } {
            return Err(refused(format!(
                "{what} {all} times, which is as often as the cluster does at a time"
            )));
        }
        *taken.entry(user.clone()).or_default() += 1;
        Ok(Slot {
            user: user.clone(),
            taken: Arc::clone(&self.taken),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        if let Some(count) = taken.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.user);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn nobody_keeps_the_others_out() {
        let slots = Slots::new(32);
        let by = |name: &str, is_of_cluster| {
            let name = name.parse().unwrap();
            slots.take(&name, is_of_cluster, "too_many", "logs are read")
        };
        let take = |name: &str| by(name, false);
        let mut held = Vec::new();
        for name in ["ann", "bob", "cem", "dee"] {
            for _ in 0..8 {
                held.extend(take(name).ok());
            }
            assert!(take(name).is_err());
        }
        // Users of orgs have 28 of them, whoever they are.
        assert_eq!(held.len(), 28);
        assert!(take("eve").is_err());
        let of_operator = || by("ops", true);
        let four: Vec<_> = (0..4).map(|_| of_operator().unwrap()).collect();
        assert!(of_operator().is_err());
        // What is given back is there for others.
        held.truncate(20);
        assert!(take("eve").is_ok());
        drop((held, four));
        assert!(lock(&slots.taken).is_empty());
    }
}
