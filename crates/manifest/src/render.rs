//! Diagnostics for people: the line, the place underlined, the hint.

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use crate::diagnostic::{Diagnostic, Lines, Severity};

/// Whether the text goes to a terminal that shows colours. The caller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// With escape sequences.
    Always,
    /// Without.
    Never,
}

/// Columns that the shown part of a line may have; a longer line is cut around the place.
const LINE_CHARS: usize = 110;

/// The diagnostics of one text for people, in their order; ends with a new line unless empty.
/// `text` is the text they are about.
pub fn render(text: &str, diagnostics: &[Diagnostic], colour: Colour) -> String {
    let renderer = match colour {
        Colour::Always => Renderer::styled(),
        Colour::Never => Renderer::plain(),
    };
    let lines = Lines::new(text);
    let mut out = String::new();
    for diagnostic in diagnostics {
        out.push_str(&one(&renderer, &lines, diagnostic));
        out.push_str("\n\n");
    }
    out.truncate(out.trim_end().len());
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

fn one(renderer: &Renderer, lines: &Lines<'_>, diagnostic: &Diagnostic) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let (start, line) = lines.line_at(diagnostic.span.start);
    let at = diagnostic.span.start.saturating_sub(start);
    let (shown, mark) = window(line, at, diagnostic.span.len());
    let whole = shown.len() == line.len();
    let mut annotation = AnnotationKind::Primary.span(mark);
    if !diagnostic.path.is_empty() {
        annotation = annotation.label(diagnostic.path.as_str());
    }
    let title = level
        .primary_title(diagnostic.message.as_str())
        .id(diagnostic.code.as_str());
    let mut group = Group::with_title(title);
    let mut snippet = Snippet::source(shown)
        .line_start(diagnostic.line)
        .annotation(annotation);
    if whole && !line.trim().is_empty() {
        snippet = snippet.path(diagnostic.file.as_ref());
    } else {
        // The snippet cannot know the column in a line that is cut, nor has an empty one any.
        group = group.element(
            Origin::path(diagnostic.file.as_ref())
                .line(diagnostic.line)
                .char_column(diagnostic.column),
        );
    }
    if !line.trim().is_empty() {
        group = group.element(snippet);
    }
    if let Some(hint) = &diagnostic.hint {
        group = group.element(Level::HELP.message(hint.as_str()));
    }
    renderer.render(&[group])
}

/// The part of a line around a place, and the place in that part.
fn window(line: &str, at: usize, length: usize) -> (String, std::ops::Range<usize>) {
    let at = floor_boundary(line, at);
    let end = floor_boundary(line, at.saturating_add(length)).max(at);
    let whole = line.chars().take(LINE_CHARS + 1).count() <= LINE_CHARS;
    if whole {
        return (line.to_owned(), at..end);
    }
    let before = line[..at]
        .char_indices()
        .rev()
        .nth(LINE_CHARS / 3)
        .map_or(0, |(i, _)| i);
    let after = line[at..]
        .char_indices()
        .nth(LINE_CHARS * 2 / 3)
        .map_or(line.len(), |(i, _)| at + i);
    let left = if before > 0 { "..." } else { "" };
    let right = if after < line.len() { "..." } else { "" };
    let shown = format!("{left}{}{right}", &line[before..after]);
    let mark = (at - before + left.len())..(end.min(after) - before + left.len());
    (shown, mark)
}

fn floor_boundary(line: &str, at: usize) -> usize {
    let mut at = at.min(line.len());
    while !line.is_char_boundary(at) {
        at -= 1;
    }
    at
}
