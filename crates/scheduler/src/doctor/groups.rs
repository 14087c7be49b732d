//! Many links in few sentences: those that have a member in common are one.

use std::collections::{BTreeMap, BTreeSet};

/// Groups pairs by the ends that they have in common: the end that most pairs have first. Ends that have the same others are in one group. Each pair is in
/// one group.
pub(super) fn groups<T: Ord + Copy>(
    pairs: impl IntoIterator<Item = (T, T)>,
) -> Vec<(Vec<T>, Vec<T>)> {
    let mut others: BTreeMap<T, BTreeSet<T>> = BTreeMap::new();
    for (one, other) in pairs {
        others.entry(one).or_default().insert(other);
        others.entry(other).or_default().insert(one);
    }
    let mut groups: Vec<(Vec<T>, Vec<T>)> = Vec::new();
    let mut of_the_same: BTreeMap<Vec<T>, usize> = BTreeMap::new();
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
        let of: Vec<T> = of.into_iter().collect();
        let place = *of_the_same.entry(of.clone()).or_insert(groups.len());
        match groups.get_mut(place) {
            Some((commons, _)) => commons.push(common),
            None => groups.push((vec![common], of)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_grouped_by_the_member_that_most_have() {
        let of = groups([(1, 4), (2, 4), (3, 4), (1, 2), (5, 6)]);
        let one = |common, of: &[_]| (vec![common], of.to_vec());
        assert_eq!(of, [one(4, &[1, 2, 3]), one(1, &[2]), one(5, &[6])]);
        assert_eq!(groups::<u8>([]), []);
    }

    #[test]
    fn what_several_members_see_of_the_same_others_is_one_group() {
        let pairs = (1..=3).flat_map(|well| (10..=20).map(move |ill| (well, ill)));
        assert_eq!(groups(pairs), [(vec![1, 2, 3], (10..=20).collect())]);
    }
}
