//! "Did you mean": the nearest of a few known words.

/// Words of other tools for things that a manifest has by another name.
const SYNONYMS: [(&str, &str); 22] = [
    ("args", "command"),
    ("cmd", "command"),
    ("count", "scaling"),
    ("cpus", "cpu"),
    ("disk", "scratch"),
    ("domains", "routes"),
    ("entrypoint", "command"),
    ("environment", "env"),
    ("health", "healthcheck"),
    ("healthchecks", "healthcheck"),
    ("hosts", "routes"),
    ("instances", "scaling"),
    ("mem", "memory"),
    ("name", "app"),
    ("number", "port"),
    ("replicas", "scaling"),
    ("run", "command"),
    ("service", "process"),
    ("services", "processes"),
    ("target", "process"),
    ("variables", "env"),
    ("vars", "env"),
];

/// Longest word that is compared, in bytes; anything longer is near to nothing.
const MAX_WORD_BYTES: usize = 64;

/// The candidate that `word` was probably meant to be.
pub(crate) fn nearest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    if word.is_empty() || word.len() > MAX_WORD_BYTES {
        return None;
    }
    let folded = fold(word);
    let synonym = SYNONYMS
        .iter()
        .find(|(theirs, _)| *theirs == folded)
        .map(|(_, ours)| *ours);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        if synonym == Some(candidate) {
            return Some(candidate);
        }
        let other = fold(candidate);
        let distance = distance(&folded, &other);
        let longest = folded.chars().count().max(other.chars().count());
        // A third of the letters may differ, and one always, but not all of a short word.
        let near = distance <= (longest / 3).max(1) && distance < longest;
        if near && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Case, hyphens and underscores do not make words different.
fn fold(word: &str) -> String {
    word.chars()
        .filter(|c| *c != '-' && *c != '_')
        .flat_map(char::to_lowercase)
        .collect()
}

/// Optimal string alignment distance: insert, delete, replace, swap neighbours.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(last[j] + 1).min(row[j - 1] + 1);
            let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if swapped {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = last;
        last = row;
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_word_that_was_meant() {
        let keys = [
            "command",
            "healthcheck",
            "env",
            "scaling",
            "resources",
            "ports",
        ];
        for (word, meant) in [
            ("comand", Some("command")),
            ("cmd", Some("command")),
            ("health_check", Some("healthcheck")),
            ("HealthCheck", Some("healthcheck")),
            ("replicas", Some("scaling")),
            ("port", Some("ports")),
            ("prots", Some("ports")),
            ("x", None),
            ("zebra", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, keys), meant, "{word}");
        }
        assert_eq!(nearest(&"c".repeat(10_000), keys), None);
    }
}
