//! An ordered map of which a copy costs nothing: copies share all that they have in common.
//!
//! The cluster state is made of tables. So the leader publishes the state after each change, and goes back to the state
//! before a change that the store refused, without copying what did not change.

use std::borrow::Borrow;
use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use immutable_chunkmap::map::Map;

/// Entries of one node of the tree. A change copies the nodes on its path that another copy of the table has, too.
const CHUNK: usize = 32;

/// An ordered map. A clone is one pointer; a change of either costs the logarithm of its size.
pub struct Table<K: Ord + Clone, V>(Map<K, Arc<V>, CHUNK>);

impl<K: Ord + Clone, V> Table<K, V> {
    /// An empty table.
    pub fn new() -> Self {
        Self(Map::new())
    }

    /// The value of this key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).map(AsRef::as_ref)
    }

    /// The value of this key, as the table shares it.
    pub fn get_shared<Q: Ord + ?Sized>(&self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).cloned()
    }

    /// Whether there is such a key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.0.get(key).is_some()
    }

    /// Adds a value, or replaces the key's.
    pub fn insert(&mut self, key: K, value: impl Into<Arc<V>>) {
        self.0.insert_cow(key, value.into());
    }

    /// Removes a key. Its value may live on in copies of the table.
    pub fn remove<Q: Ord>(&mut self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
    {
        self.0.remove_cow(key)
    }

    /// Removes every key.
    pub fn clear(&mut self) {
        self.0 = Map::new();
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    /// The entries, in the order of their keys.
    pub fn iter(&self) -> Entries<'_, K, V> {
        self.into_iter()
    }

    /// The keys, in their order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> {
        self.0.into_iter().map(|(key, _)| key)
    }

    /// The values, in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.0.into_iter().map(|(_, value)| value.as_ref())
    }

    /// The entries with a key in `range`, in their order.
    pub fn range<R: RangeBounds<K>>(&self, range: R) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        let bounds: (Bound<K>, Bound<K>) =
            (range.start_bound().cloned(), range.end_bound().cloned());
        let entries = self.0.range::<K, _>(bounds);
        entries.map(|(key, value)| (key, value.as_ref()))
    }
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    /// The value of this key, to be changed. It is copied first where a copy of the table has it, too.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.0.get_mut_cow(key).map(Arc::make_mut)
    }

    /// Changes the value of this key, and gives it as it is from then on.
    pub fn change<Q: Ord + ?Sized>(
        &mut self,
        key: &Q,
        change: impl FnOnce(&mut V),
    ) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
    {
        let value = self.0.get_mut_cow(key)?;
        change(Arc::make_mut(value));
        Some(Arc::clone(value))
    }

    /// Every value, to be changed. Copies all that other copies of the table have, too.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.iter_mut_cow().map(|(_, value)| Arc::make_mut(value))
    }
}

impl<K: Ord + Clone, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Ord + Clone, V> Default for Table<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord + Clone, V: PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl<K: Ord + Clone, V: Eq> Eq for Table<K, V> {}

impl<K: Ord + Clone + fmt::Debug, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// The entries of a table, in the order of their keys.
pub type Entries<'t, K, V> = std::iter::Map<
    <&'t Map<K, Arc<V>, CHUNK> as IntoIterator>::IntoIter,
    fn((&'t K, &'t Arc<V>)) -> (&'t K, &'t V),
>;

impl<'t, K: Ord + Clone, V> IntoIterator for &'t Table<K, V> {
    type Item = (&'t K, &'t V);
    type IntoIter = Entries<'t, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter().map(|(key, value)| (key, value.as_ref()))
    }
}

impl<K: Ord + Clone, V, const N: usize> From<[(K, V); N]> for Table<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K: Ord + Clone, V> FromIterator<(K, V)> for Table<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let entries = entries.into_iter();
        let shared = entries.map(|(key, value)| (key, Arc::new(value)));
        Self(shared.collect())
    }
}

impl<K: Ord + Clone, V> Extend<(K, V)> for Table<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

/// Only tests know that there is such a key.
#[cfg(any(test, feature = "fixtures"))]
impl<K: Ord + Clone + fmt::Debug, V> std::ops::Index<&K> for Table<K, V> {
    type Output = V;

    /// # Panics
    /// There is no such key.
    fn index(&self, key: &K) -> &V {
        self.get(key)
            .unwrap_or_else(|| panic!("there is no {key:?} in the table"))
    }
}
