//! Which entries are evicted from a node's image cache when it is over its budget.

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
    pub pinned: bool,
}

/// What is to be removed so that the rest fits into `budget_bytes`: the longest unused first, and no more than
/// needed. Pinned entries count and stay, so the rest may still be over the budget.
pub fn evict<K: Ord + Clone>(entries: &[CacheEntry<K>], budget_bytes: u64) -> Vec<K> {
    let total = entries
        .iter()
        .fold(0u64, |sum, entry| sum.saturating_add(entry.bytes));
    let mut over = total.saturating_sub(budget_bytes);
    let mut evictable: Vec<&CacheEntry<K>> = entries.iter().filter(|entry| !entry.pinned).collect();
    evictable.sort_by(|a, b| (a.last_used, &a.key).cmp(&(b.last_used, &b.key)));
    let mut evicted = Vec::new();
    for entry in evictable {
        if over == 0 {
            break;
        }
        over = over.saturating_sub(entry.bytes);
        evicted.push(entry.key.clone());
    }
    evicted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_unused_is_evicted_first() {
        let entry = |key, bytes, last_used, pinned| CacheEntry {
            key,
            bytes,
            last_used,
            pinned,
        };
        let cache = [
            entry("new", 10, 9, false),
            entry("running", 50, 1, true),
            entry("old", 10, 2, false),
            entry("older", 10, 1, false),
        ];
        assert_eq!(evict(&cache, 80), [""; 0]);
        assert_eq!(evict(&cache, 79), ["older"]);
        assert_eq!(evict(&cache, 61), ["older", "old"]);
        assert_eq!(evict(&cache, 0), ["older", "old", "new"]);
    }

    proptest! {
        #[test]
        fn the_rest_fits_or_nothing_is_left_to_evict(
            things in proptest::collection::vec((0..100u64, 0..20u64, any::<bool>()), 0..20),
            budget in 0..1500u64,
        ) {
            let entries: Vec<_> = (0..)
                .zip(things)
                .map(|(key, (bytes, last_used, pinned))| CacheEntry { key, bytes, last_used, pinned })
                .collect();
            let evicted = evict(&entries, budget);
            let (mut rest, mut evictable) = (0, 0);
            for entry in &entries {
                if evicted.contains(&entry.key) {
                    prop_assert!(!entry.pinned);
                } else {
                    rest += entry.bytes;
                    evictable += u64::from(!entry.pinned);
                }
            }
            prop_assert!(rest <= budget || evictable == 0);
            // The last one that was evicted was needed.
            if let Some(last) = evicted.last() {
                let last: usize = *last;
                prop_assert!(rest + entries[last].bytes > budget);
            }
        }
    }
}
