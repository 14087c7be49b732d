//! The version of the protocol between members (nodes, edges) and the server.
//!
//! Every request of a member, the enrollment call too, says in the header [`PROTOCOL_HEADER`] which version its sender
//! speaks. A server serves its own version and the one before, so that the server is upgraded first and its members
//! one after the other. It refuses all others, with a message that names both versions; a member that is refused goes
//! on with what it was last told.
//!
//! Within a version, messages may only get new optional fields: the receiver ignores fields that it does not know.
//! Anything else needs a new version. Where a newer sender says what its receiver cannot read all the same (a new state
//! of an instance, a spec of a new kind), that part costs nothing else of the message, and is never taken for absent.
//!
//! | version | what changed |
//! |---|---|
//! | 1 | members that send no version: up to commit f29f308. Not served: they refuse fields that they do not know |
//! | 2 | the header; `last_words` (old word: the name in version 1) of an instance's report is `log_tail`; a node may refuse a stream |
//! | 3 | reports are differences with a sequence ([`crate::node::ReportDelta`]), and are answered |
//! | 4 | nodes obey `egress` of an instance, run commands of users, and look for a text and an end in logs; members of before do not know these, and are not given what needs them |

use std::ops::RangeInclusive;

/// The header with the version, a decimal number.
pub const PROTOCOL_HEADER: &str = "platform-protocol";
/// The version that members built from this code speak.
pub const PROTOCOL_VERSION: u32 = 4;
/// The oldest version that a server built from this code serves.
pub const OLDEST_PROTOCOL_VERSION: u32 = 3;
/// The versions that a server built from this code serves.
pub const SERVED_PROTOCOL_VERSIONS: RangeInclusive<u32> =
    OLDEST_PROTOCOL_VERSION..=PROTOCOL_VERSION;
/// The version of a member whose requests have no [`PROTOCOL_HEADER`].
const UNNAMED_VERSION: u32 = 1;

const _: () = assert!(
    PROTOCOL_VERSION < OLDEST_PROTOCOL_VERSION + 2,
    "a server serves its own version and the one before"
);

/// Why a member is not served because of its protocol version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolRefused {
    /// The member is too old.
    #[error(
        "the member speaks protocol version {found}, and this server serves {}: upgrade `platform` on the member",
        range(served)
    )]
    TooOld {
        /// The member's version.
        found: u32,
        /// The server's versions.
        served: RangeInclusive<u32>,
    },
    /// The server is too old.
    #[error(
        "the member speaks protocol version {found}, and this server serves {}: upgrade `platform` on the server, which \
         is upgraded before its members",
        range(served)
    )]
    TooNew {
        /// The member's version.
        found: u32,
        /// The server's versions.
        served: RangeInclusive<u32>,
    },
    /// The header has no version in it.
    #[error("the header {PROTOCOL_HEADER} is not a number")]
    NotANumber,
}

fn range(served: &RangeInclusive<u32>) -> String {
    let (oldest, newest) = (served.start(), served.end());
    if oldest == newest {
        format!("version {newest}")
    } else {
        format!("versions {oldest} to {newest}")
    }
}

/// The version of a member with this header, if it is one of those that are `served`.
///
/// # Errors
/// It is not.
pub fn check(header: Option<&str>, served: &RangeInclusive<u32>) -> Result<u32, ProtocolRefused> {
    let found = match header {
        None => UNNAMED_VERSION,
        Some(text) => text.parse().map_err(|_| ProtocolRefused::NotANumber)?,
    };
    let served = served.clone();
    if found < *served.start() {
        Err(ProtocolRefused::TooOld { found, served })
    } else if found > *served.end() {
        Err(ProtocolRefused::TooNew { found, served })
    } else {
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_server_serves_its_version_and_the_one_before() {
        let at_7 = |header| check(header, &(6..=7));
        assert_eq!(at_7(Some("7")), Ok(7));
        assert_eq!(at_7(Some("6")), Ok(6));
        assert_eq!(
            at_7(Some("5")).unwrap_err().to_string(),
            "the member speaks protocol version 5, and this server serves versions 6 to 7: upgrade `platform` on the \
             member"
        );
        assert_eq!(
            at_7(Some("8")).unwrap_err().to_string(),
            "the member speaks protocol version 8, and this server serves versions 6 to 7: upgrade `platform` on the \
             server, which is upgraded before its members"
        );
        assert_eq!(at_7(Some("v7")), Err(ProtocolRefused::NotANumber));
    }

    #[test]
    fn a_member_that_names_no_version_is_refused_as_version_1() {
        let refused = check(None, &SERVED_PROTOCOL_VERSIONS).unwrap_err();
        assert!(refused.to_string().contains("speaks protocol version 1,"));
    }
}
