//! Text of others, made harmless for a terminal, a table and a log.

/// Ends every colour and style (ECMA-48 8.3.117, SGR 0).
const RESET: &str = "\x1b[0m";

/// Whether a character makes a line read otherwise than it is written (Unicode TR 9; CVE-2021-42574).
pub fn is_bidi_control(c: char) -> bool {
    matches!(
        c,
        '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}'
    )
}

/// Whether a character is obeyed and not shown: a control character, or one that changes the direction of
/// text.
pub fn is_hidden(c: char) -> bool {
    c.is_control() || is_bidi_control(c)
}

/// A text on one line, trimmed: hidden characters become spaces. What is longer than `max_bytes` ends there
/// with an ellipsis.
pub fn one_line(text: &str, max_bytes: usize) -> String {
    let mut line: String = text
        .trim()
        .chars()
        .map(|c| if is_hidden(c) { ' ' } else { c })
        .collect();
    if line.len() > max_bytes {
        line.truncate(line.floor_char_boundary(max_bytes));
        line.push('…');
    }
    line
}

/// A text of several lines, trimmed, without terminal escape sequences and without hidden characters other
/// than line feed and tab.
pub fn lines(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\n' | '\t' => clean.push(character),
            // The whole control sequence goes (ECMA-48 5.4): ESC [ parameters, final letter.
            '\u{1b}' => {
                if characters.next_if_eq(&'[').is_some() {
                    while characters.next_if(|c| matches!(c, ' '..='?')).is_some() {}
                    characters.next_if(|c| matches!(c, '@'..='~'));
                }
            }
            other if is_hidden(other) => {}
            other => clean.push(other),
        }
    }
    clean.trim().to_owned()
}

/// A line for a terminal that may use colours. Every other hidden character is shown as an escape,
/// `\u{1b}`.
pub fn coloured_line(text: &str) -> String {
    let obeyed = |c: char| is_hidden(c) && c != '\t';
    if !text.chars().any(obeyed) {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len() + RESET.len());
    let mut coloured = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(sequence) = colour_sequence(rest) {
            shown.push_str(sequence);
            coloured = true;
            rest = &rest[sequence.len()..];
            continue;
        }
        if obeyed(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    if coloured {
        shown.push_str(RESET);
    }
    shown
}

/// The sequence for colours (SGR) that the text begins with: `ESC [ digits ; … m`.
fn colour_sequence(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    parameters[end..]
        .starts_with('m')
        .then(|| &text[..=(2 + end)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_has_no_hidden_characters_and_ends_at_its_limit() {
        assert_eq!(one_line(" a\tb\n\u{1b}[2Jc\u{202e}d ", 200), "a b  [2Jc d");
        assert_eq!(one_line("äöü", 5), "äö…");
        assert_eq!(one_line("äöü", 6), "äöü");
        assert_eq!(one_line("", 3), "");
    }

    #[test]
    fn lines_lose_escape_sequences_and_keep_line_feeds() {
        let text = "\u{1b}c\u{1b}[?7l\u{1b}[2J\r\nKernel panic\u{7}: no init\r\n\tat 1\n";
        assert_eq!(lines(text), "c\nKernel panic: no init\n\tat 1");
    }

    #[test]
    fn a_coloured_line_colours_and_does_nothing_else_to_a_terminal() {
        assert_eq!(coloured_line("plain\ttext ü"), "plain\ttext ü");
        assert_eq!(coloured_line("\x1b[1;31mred"), "\x1b[1;31mred\x1b[0m");
        assert_eq!(coloured_line("\x1b[2Jgone"), r"\u{1b}[2Jgone");
        assert_eq!(
            coloured_line("a\rb\x1b]0;title\x07"),
            r"a\rb\u{1b}]0;title\u{7}"
        );
        assert_eq!(coloured_line("\x1b[3"), r"\u{1b}[3");
        assert_eq!(coloured_line("abc\u{202e}fed"), r"abc\u{202e}fed");
    }
}
