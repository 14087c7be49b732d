//! The diagnostics of a manifest.
#![allow(dead_code, reason = "each test uses a part")]

use expect_test::Expect;
use manifest::{Colour, Manifest, render};

/// What a person sees for this text.
pub(crate) fn check(text: &str, expected: Expect) {
    let shown = match Manifest::from_toml("platform.toml", text) {
        Ok(decoded) => render(text, &decoded.warnings, Colour::Never) + "fine\n",
        Err(errors) => render(text, &errors, Colour::Never),
    };
    expected.assert_eq(&shown);
}

/// One line for each diagnostic: code, place, path, message, hint.
pub(crate) fn check_lines(text: &str, expected: Expect) {
    let found = match Manifest::from_toml("platform.toml", text) {
        Ok(decoded) => decoded.warnings,
        Err(errors) => errors,
    };
    let lines: Vec<String> = found
        .iter()
        .map(|d| {
            let hint = d.hint.as_deref().unwrap_or("-");
            format!(
                "{} {}:{} {}: {} [{hint}]\n",
                d.code, d.line, d.column, d.path, d.message
            )
        })
        .collect();
    expected.assert_eq(&lines.concat());
}
