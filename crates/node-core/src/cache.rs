//! What goes from a node's image cache when it is over its budget.

/// One thing in the cache: a root disk, a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry<K> {
    /// Its name.
    pub key: K,
    /// What it takes, in bytes.
    pub bytes: u64,
    /// When it was last used, in milliseconds since 1970.
    pub last_used: u64,
    /// Whether it stays whatever the budget says: an instance runs from it, or it is of one of the last releases.
    pub kept: bool,
}

/// What is to be removed so that the rest fits into `budget_bytes`: the longest unused first, and no more than
/// needed. What is kept counts and stays, so the rest may still be over the budget.
pub fn evict<K: Ord + Clone>(held: &[CacheEntry<K>], budget_bytes: u64) -> Vec<K> {
    let total = held
        .iter()
        .fold(0u64, |sum, held| sum.saturating_add(held.bytes));
    let mut over = total.saturating_sub(budget_bytes);
    let mut free: Vec<&CacheEntry<K>> = held.iter().filter(|held| !held.kept).collect();
    free.sort_by(|a, b| (a.last_used, &a.key).cmp(&(b.last_used, &b.key)));
    let mut gone = Vec::new();
    for held in free {
        if over == 0 {
            break;
        }
        over = over.saturating_sub(held.bytes);
        gone.push(held.key.clone());
    }
    gone
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_unused_goes_first() {
        let held = |key, bytes, last_used, kept| CacheEntry {
            key,
            bytes,
            last_used,
            kept,
        };
        let cache = [
            held("new", 10, 9, false),
            held("running", 50, 1, true),
            held("old", 10, 2, false),
            held("older", 10, 1, false),
        ];
        assert_eq!(evict(&cache, 80), [""; 0]);
        assert_eq!(evict(&cache, 79), ["older"]);
        assert_eq!(evict(&cache, 61), ["older", "old"]);
        assert_eq!(evict(&cache, 0), ["older", "old", "new"]);
    }

    proptest! {
        #[test]
        fn fits_or_nothing_is_left_to_remove(
            things in proptest::collection::vec((0..100u64, 0..20u64, any::<bool>()), 0..20),
            budget in 0..1500u64,
        ) {
            let held: Vec<_> = (0..)
                .zip(things)
                .map(|(key, (bytes, last_used, kept))| CacheEntry { key, bytes, last_used, kept })
                .collect();
            let gone = evict(&held, budget);
            let (mut rest, mut free) = (0, 0);
            for held in &held {
                if gone.contains(&held.key) {
                    prop_assert!(!held.kept);
                } else {
                    rest += held.bytes;
                    free += u64::from(!held.kept);
                }
            }
            prop_assert!(rest <= budget || free == 0);
            // The last one that goes was needed.
            if let Some(last) = gone.last() {
                let last: usize = *last;
                prop_assert!(rest + held[last].bytes > budget);
            }
        }
    }
}
