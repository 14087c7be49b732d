//! The words that are gone stay gone: CONTRIBUTING.md's glossary against every text of the repository.
//!
//! A row of the glossary is `| we say | not | gone |`. The third cell has the patterns that `tidy` looks for,
//! each between backticks. A pattern is a literal text:
//!
//! - it matches whole words only; `_` ends a word, and so does a capital letter within one: `take_up` is found in
//!   `take_up_again`, `World` in `WorldState` and `chore` in `ChoreList`;
//! - without a capital letter it matches any case: `way out` is found in `Way out`;
//! - a blank also matches the end of a line, with the marks of a comment that follow it, and, in a pattern of words only,
//!   a `_`: `way out` is found in `the_way_out`.
//!
//! A line that must have an old word, such as the reader of an old format, says why behind
//! [`EXCUSE`] on that line or on the line above. CHANGELOG.md, fixtures of old formats, migrations and the decision of an
//! ADR, which is amended and not rewritten, have the words of their own time.

use super::documents;
use super::source::Source;

/// A line with this comment, or the line below it, may have an old word.
const EXCUSE: &str = "old word: ";
/// The document that has the glossary.
const GLOSSARY: &str = "CONTRIBUTING.md";
/// The heading of the glossary.
const HEADING: &str = "## Glossary";
/// Endings of the files that are read.
const EXTENSIONS: [&str; 5] = ["rs", "md", "sh", "toml", "py"];

/// Finds the words of the glossary's third column.
pub(super) fn check(sources: &[Source], findings: &mut Vec<String>) {
    let Some(glossary) = sources.iter().find(|source| source.path == GLOSSARY) else {
        findings.push(format!("{GLOSSARY} is missing"));
        return;
    };
    let patterns = patterns(&glossary.text);
    if patterns.is_empty() {
        findings.push(format!(
            "{GLOSSARY}: `{HEADING}` has no table with a third column"
        ));
    }
    for source in sources.iter().filter(|source| is_read(&source.path)) {
        let flat = Flat::new(&source.path, &source.text);
        for pattern in &patterns {
            for line in flat.find(pattern) {
                findings.push(format!(
                    "{}:{line}: `{}` is an old word: {GLOSSARY} says `{}`",
                    source.path, pattern.text, pattern.instead
                ));
            }
        }
    }
}

fn is_read(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let has_text = name == "Makefile"
        || name
            .rsplit_once('.')
            .is_some_and(|(_, extension)| EXTENSIONS.contains(&extension));
    let tells_of_its_own_time = path == "CHANGELOG.md" || path.contains("/fixtures/");
    has_text && !tells_of_its_own_time && path != "xtask/src/tidy/glossary.rs"
}

/// A word that is gone.
#[derive(Debug, PartialEq, Eq)]
struct Pattern {
    text: String,
    /// The first cell of its row.
    instead: String,
}

/// The patterns of the table below the heading.
fn patterns(document: &str) -> Vec<Pattern> {
    rows(document)
        .flat_map(|(_, row)| {
            let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
            let instead = cells.first().copied().unwrap_or_default().replace('`', "");
            let gone = cells.get(2).copied().unwrap_or_default();
            let gone: Vec<_> = gone.split('`').skip(1).step_by(2).collect();
            gone.into_iter().map(move |text| Pattern {
                text: text.to_owned(),
                instead: instead.clone(),
            })
        })
        .collect()
}

/// The rows of the glossary's table, with their line numbers from 0.
fn rows(document: &str) -> impl Iterator<Item = (usize, &str)> {
    document
        .lines()
        .enumerate()
        .skip_while(|(_, line)| *line != HEADING)
        .skip(1)
        .take_while(|(_, line)| !line.starts_with('#'))
        .filter(|(_, line)| line.starts_with('|'))
}

/// A text on one line: the end of a line, its indentation and the marks of a comment are one blank.
struct Flat {
    text: String,
    lower: String,
    /// In lower case, with a blank in place of each `_`.
    words: String,
    /// Where each line begins in the text, and its number from 1.
    starts: Vec<(usize, usize)>,
}

impl Flat {
    fn new(path: &str, text: &str) -> Self {
        let own: Vec<_> = if path == GLOSSARY {
            rows(text).map(|(number, _)| number).collect()
        } else if documents::is_adr(path) {
            (0..documents::lines_of_the_decision(text)).collect()
        } else {
            Vec::new()
        };
        let mut flat = String::with_capacity(text.len());
        let mut starts = Vec::new();
        let mut excused = false;
        for (number, line) in text.lines().enumerate() {
            let excuses = line.contains(EXCUSE);
            if !(excuses || excused || own.contains(&number)) {
                starts.push((flat.len(), number + 1));
                flat.push_str(
                    line.trim_start()
                        .trim_start_matches(['/', '!', '#', '*', '>'])
                        .trim(),
                );
            }
            flat.push(' ');
            excused = excuses;
        }
        let lower = flat.to_ascii_lowercase();
        Self {
            words: lower.replace('_', " "),
            lower,
            text: flat,
            starts,
        }
    }

    /// The lines on which the pattern begins.
    fn find(&self, pattern: &Pattern) -> Vec<usize> {
        let text = if pattern.text.chars().any(char::is_uppercase) {
            &self.text
        } else if pattern.text.contains('_') || !pattern.text.contains(' ') {
            &self.lower
        } else {
            &self.words
        };
        // All three have each character at the same place.
        text.match_indices(&pattern.text)
            .filter(|(at, found)| self.is_boundary(*at) && self.is_boundary(at + found.len()))
            .map(|(at, _)| {
                let line = self.starts.partition_point(|(start, _)| *start <= at);
                self.starts[line - 1].1
            })
            .collect()
    }

    /// Whether the characters on both sides of this place belong to two words: one of them is no letter or digit, or a
    /// capital letter begins a word (`WorldState`, `OCIWorld`).
    fn is_boundary(&self, at: usize) -> bool {
        let (left, right) = self.text.split_at(at);
        let mut right = right.chars();
        let (Some(before), Some(after)) = (left.chars().next_back(), right.next()) else {
            return true;
        };
        let begins = after.is_uppercase()
            && (!before.is_uppercase() || right.next().is_some_and(char::is_lowercase));
        !before.is_alphanumeric() || !after.is_alphanumeric() || begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "# Contributing\n\n## Glossary\n\n| we say | not | gone |\n|---|---|---|\n\
        | apply | take up | `take_up`, `taken up` |\n| `ClusterState` | World | `World` |\n\
        | held | | |\n\n## Next\n| a | b | `next` |\n";

    fn findings(path: &str, text: &str) -> Vec<String> {
        let source = |path: &str, text: &str| Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let mut findings = Vec::new();
        let sources = [source(GLOSSARY, DOCUMENT), source(path, text)];
        check(&sources, &mut findings);
        findings
    }

    #[test]
    fn a_pattern_is_read_from_the_third_cell_of_the_glossary_only() {
        let patterns = patterns(DOCUMENT);
        let texts: Vec<_> = patterns.iter().map(|p| (&*p.text, &*p.instead)).collect();
        assert_eq!(
            texts,
            [
                ("take_up", "apply"),
                ("taken up", "apply"),
                ("World", "ClusterState")
            ]
        );
    }

    #[test]
    fn an_old_word_is_found_in_code_in_documents_and_across_lines() {
        assert_eq!(
            findings(
                "a/b.rs",
                "fn take_up_now() {}\n/// It was Taken\n    /// up.\n"
            ),
            [
                "a/b.rs:1: `take_up` is an old word: CONTRIBUTING.md says `apply`",
                "a/b.rs:2: `taken up` is an old word: CONTRIBUTING.md says `apply`"
            ]
        );
        assert_eq!(
            findings("Makefile", "World:\n"),
            ["Makefile:1: `World` is an old word: CONTRIBUTING.md says `ClusterState`"]
        );
    }

    #[test]
    fn a_word_within_a_longer_name_is_found() {
        for text in [
            "WorldState",
            "HelloWorld",
            "OCIWorld",
            "World2",
            "load_World",
        ] {
            let found = findings("a.rs", text);
            // A digit continues a word.
            assert_eq!(found.len(), usize::from(text != "World2"), "{text}");
        }
        assert_eq!(findings("a.rs", "fn is_taken_up_now() {}").len(), 1);
    }

    #[test]
    fn the_decision_of_an_adr_has_the_words_of_its_time_and_its_amendments_do_not() {
        let text = "# ADR\nThe World\n## Amendment, 2026-01-01: a\nThe World\n";
        assert_eq!(findings("docs/adr/README.md", text).len(), 2);
        let found = findings("docs/adr/0001-a.md", text);
        assert!(
            found.len() == 1 && found[0].starts_with("docs/adr/0001-a.md:4"),
            "{found:?}"
        );
    }

    #[test]
    fn a_longer_word_another_case_and_another_kind_of_file_are_left_alone() {
        let text = "Worldwide world stake_up retaken upon taken upwards\n";
        assert!(findings("a.rs", text).is_empty());
        assert!(findings("a.bin", "World").is_empty());
        assert!(findings("migrations/1.sql", "World").is_empty());
        assert!(findings("tests/fixtures/a.toml", "World").is_empty());
    }

    #[test]
    fn an_excused_line_and_the_line_below_an_excuse_may_have_old_words() {
        let text = "// old word: rows of version 1 have it\n#[serde(alias = \"World\")]\nWorld\n";
        assert_eq!(findings("a.rs", text).len(), 1);
        assert!(findings("a.rs", "take_up // old word: version 1\n").is_empty());
    }

    #[test]
    fn a_document_without_a_glossary_is_a_finding() {
        let mut findings = Vec::new();
        check(&[], &mut findings);
        let empty = Source {
            path: GLOSSARY.to_owned(),
            text: "# Contributing\n".to_owned(),
        };
        check(&[empty], &mut findings);
        assert_eq!(findings.len(), 2);
    }
}
