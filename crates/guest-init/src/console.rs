//! The serial console: the kernel's messages, and messages that init cannot send to the node.

/// Writes a line to the console.
pub(crate) fn print(text: &str) {
    eprintln!("platform-init: {text}");
}
