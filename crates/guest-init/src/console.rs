//! The serial console: the kernel's messages, and what init can tell nobody else.

/// Writes a line to the console.
pub(crate) fn print(text: &str) {
    eprintln!("platform-init: {text}");
}
