//! How errors and text of others are shown to people.
//!
//! - [`causes`], [`messages`] and [`chain`]: an error with its causes, for a terminal and for a log line.
//! - [`one_line`], [`lines`] and [`coloured_line`]: text of a registry, a guest or a console, without the
//!   characters that a terminal obeys and those that reorder what a person reads.
//! - [`Repeated`]: an error that comes again and again, once a minute.
//!
//! There is no other place in the workspace that walks an error's sources or filters control characters.

mod error;
mod repeated;
mod text;

pub use error::{causes, chain, messages, messages_of};
pub use repeated::Repeated;
pub use text::{coloured_line, is_bidi_control, is_hidden, lines, one_line};
