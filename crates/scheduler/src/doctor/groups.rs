//! Many links in few sentences: those that have a member in common are one.

use std::collections::{BTreeMap, BTreeSet};

/// Groups pairs by an end that they have in common: the end that most pairs have first. Each pair is in one group.
pub(super) fn groups<T: Ord + Copy>(pairs: impl IntoIterator<Item = (T, T)>) -> Vec<(T, Vec<T>)> {
    let mut others: BTreeMap<T, BTreeSet<T>> = BTreeMap::new();
    for (one, other) in pairs {
        others.entry(one).or_default().insert(other);
        others.entry(other).or_default().insert(one);
    }
    let mut groups = Vec::new();
    loop {
        // Of those that have as many, the lowest.
        let common = (others.iter())
            .rev()
            .max_by_key(|(_, of)| of.len())
            .filter(|(_, of)| !of.is_empty())
            .map(|(end, _)| *end);
        let Some(common) = common else {
            return groups;
        };
        let of = others.remove(&common).unwrap_or_default();
        for other in &of {
            if let Some(back) = others.get_mut(other) {
                back.remove(&common);
            }
        }
        groups.push((common, of.into_iter().collect()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_grouped_by_the_member_that_most_have() {
        let of = groups([(1, 4), (2, 4), (3, 4), (1, 2), (5, 6)]);
        assert_eq!(of, [(4, vec![1, 2, 3]), (1, vec![2]), (5, vec![6])]);
        assert_eq!(groups::<u8>([]), []);
    }
}
