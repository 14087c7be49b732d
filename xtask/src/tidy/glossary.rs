//! The words that are gone stay gone: CONTRIBUTING.md's glossary against every text of the repository.
//!
//! A row of the glossary is `| we say | not | gone |`. The third cell has the patterns that `tidy` looks for,
//! each between backticks. A pattern is a literal text:
//!
//! - it matches whole words only; `_` ends a word, so `take_up` is found in `take_up_again`;
//! - without a capital letter it matches any case: `way out` is found in `Way out`;
//! - a blank also matches the end of a line, with the marks of a comment that follow it.
//!
//! A line that must have an old word, such as the reader of an old format, says why behind
//! [`EXCUSE`] on that line or on the line above. CHANGELOG.md, fixtures of old formats and migrations have the words of
//! their own time.

use super::Source;

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
        let flat = Flat::new(&source.text, source.path == GLOSSARY);
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
    /// Where each line begins in the text, and its number from 1.
    starts: Vec<(usize, usize)>,
}

impl Flat {
    fn new(text: &str, has_glossary: bool) -> Self {
        let own: Vec<_> = if has_glossary {
            rows(text).map(|(number, _)| number).collect()
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
        Self {
            lower: flat.to_ascii_lowercase(),
            text: flat,
            starts,
        }
    }

    /// The lines on which the pattern begins.
    fn find(&self, pattern: &Pattern) -> Vec<usize> {
        let any_case = !pattern.text.chars().any(char::is_uppercase);
        let text = if any_case { &self.lower } else { &self.text };
        text.match_indices(&pattern.text)
            .filter(|(at, found)| {
                let before = text[..*at].chars().next_back();
                let after = text[at + found.len()..].chars().next();
                !(continues(before, found.chars().next())
                    || continues(found.chars().next_back(), after))
            })
            .map(|(at, _)| {
                let line = self.starts.partition_point(|(start, _)| *start <= at);
                self.starts[line - 1].1
            })
            .collect()
    }
}

/// Whether two neighbouring characters belong to one word.
fn continues(left: Option<char>, right: Option<char>) -> bool {
    left.is_some_and(char::is_alphanumeric) && right.is_some_and(char::is_alphanumeric)
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
    fn a_longer_word_another_case_and_another_kind_of_file_are_left_alone() {
        let text = "WorldWide HelloWorld world stake_up retaken upon taken upwards\n";
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
