//! Which entries a node evicts from its image cache when the cache is over its budget.

/// An entry of the cache: a root disk, a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry<K> {
    /// Its name.
    pub key: K,
    /// Its size on the node's disk, in bytes.
    pub bytes: u64,
    /// When it was last used, in milliseconds since 1970.
    pub last_used: u64,
    /// Whether it is never evicted: an instance runs from it, or it is the image of one of the last releases.
    pub pinned: bool,
}

/// The entries to evict so that the rest fits into `budget_bytes`: the least recently used first, and no more than
/// necessary. Pinned entries count and stay, so the rest may still be over the budget.
pub fn evict<K: Ord + Clone>(entries: &[CacheEntry<K>], budget_bytes: u64) -> Vec<K> {
    let total = entries
        .iter()
        .fold(0u64, |sum, entry| sum.saturating_add(entry.bytes));
    let mut over = total.saturating_sub(budget_bytes);
    let mut unpinned: Vec<&CacheEntry<K>> = entries.iter().filter(|entry| !entry.pinned).collect();
    unpinned.sort_by(|a, b| (a.last_used, &a.key).cmp(&(b.last_used, &b.key)));
    let mut evicted = Vec::new();
    for entry in unpinned {
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
    fn the_least_recently_used_entry_is_evicted_first() {
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
        fn the_rest_fits_or_every_entry_left_is_pinned(
            entries in proptest::collection::vec((0..100u64, 0..20u64, any::<bool>()), 0..20),
            budget in 0..1500u64,
        ) {
            let entries: Vec<_> = (0..)
                .zip(entries)
                .map(|(key, (bytes, last_used, pinned))| CacheEntry { key, bytes, last_used, pinned })
                .collect();
            let evicted = evict(&entries, budget);
            let (mut rest, mut unpinned) = (0, 0);
            for entry in &entries {
                if evicted.contains(&entry.key) {
                    prop_assert!(!entry.pinned);
                } else {
                    rest += entry.bytes;
                    unpinned += u64::from(!entry.pinned);
                }
            }
            prop_assert!(rest <= budget || unpinned == 0);
            // The last eviction was necessary.
            if let Some(last) = evicted.last() {
                let last: usize = *last;
                prop_assert!(rest + entries[last].bytes > budget);
            }
        }
    }
}
