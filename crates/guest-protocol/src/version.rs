//! The version of this protocol, and which versions a node serves.

/// Version of this protocol, the one that `platform-init` names in every [`Hello`](crate::Hello).
/// The crate's documentation says when it grows.
pub const CONTRACT_VERSION: u32 = 3;
/// Oldest version that a node serves: a guest outlives one upgrade of its node's agent.
pub const OLDEST_SERVED_VERSION: u32 = CONTRACT_VERSION - 1;

/// Whether a node serves guests of this version.
pub fn is_served(version: u32) -> bool {
    (OLDEST_SERVED_VERSION..=CONTRACT_VERSION).contains(&version)
}

/// Whether guests of this version ignore fields that they do not know. Those of version 2 refuse the frame.
pub(crate) fn ignores_unknown_fields(version: u32) -> bool {
    version >= 3
}

/// Why a node refuses a guest of a version that it does not serve, and what to do about it.
pub fn refusal(version: u32) -> String {
    let advice = if version < OLDEST_SERVED_VERSION {
        "the guest's initramfs is too old: install the one that belongs to this node's version"
    } else {
        "the guest's initramfs is newer than the node: upgrade the node, or install the initramfs of its version"
    };
    format!(
        "the guest speaks version {version} of the guest protocol, this node serves \
         {OLDEST_SERVED_VERSION} and {CONTRACT_VERSION}; {advice}"
    )
}
