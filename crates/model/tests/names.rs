//! Names, digests and ids: what is refused, and with which words.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use model::{AppName, Digest, InstanceId, NodeId};
use proptest::prelude::*;

#[test]
fn names_are_dns_labels() {
    for good in ["a", "shop", "shop-2", &"x".repeat(63)] {
        assert_eq!(good.parse::<AppName>().unwrap().as_str(), good);
    }
    for bad in [
        "",
        "-a",
        "a-",
        "2shop",
        "Shop",
        "a.b",
        "a_b",
        "ä",
        &"x".repeat(64),
    ] {
        let error = bad.parse::<AppName>().unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("`{bad}` is not a valid app name: use 1 to 63")),
            "{error}"
        );
    }
}

#[test]
fn only_lowercase_sha256_is_a_digest() {
    let hex = "ab".repeat(32);
    let digest: Digest = format!("sha256:{hex}").parse().unwrap();
    assert_eq!((digest.hex(), digest.short()), (hex.as_str(), &hex[..12]));
    let upper = format!("sha256:{}", hex.to_uppercase());
    let traversal = format!("sha256:../../{}", &hex[6..]);
    for bad in [
        "",
        "sha256:",
        &hex,
        &format!("sha512:{hex}"),
        &upper,
        &traversal,
    ] {
        assert!(bad.parse::<Digest>().is_err(), "{bad}");
        assert!(
            serde_json::from_value::<Digest>(serde_json::json!(bad)).is_err(),
            "{bad}"
        );
    }
}

proptest! {
    #[test]
    fn ids_read_as_they_are_shown(instance: u32, node: u16, sha in any::<[u8; 32]>()) {
        let id = InstanceId(instance);
        prop_assert_eq!(id.to_string().len(), 8);
        prop_assert_eq!(id.to_string().parse::<InstanceId>().unwrap(), id);
        prop_assert_eq!(NodeId(node).to_string().parse::<NodeId>().unwrap(), NodeId(node));
        let digest = Digest::from_sha256(&sha);
        prop_assert_eq!(digest.as_str().parse::<Digest>().unwrap(), digest);
    }

    #[test]
    fn other_texts_are_no_ids(text in "\\PC{0,12}") {
        if let Ok(id) = text.parse::<InstanceId>() {
            prop_assert_eq!(id.to_string(), text.clone());
        }
        if let Ok(id) = text.parse::<NodeId>() {
            prop_assert!(text.starts_with('n') && text.len() >= id.to_string().len());
        }
    }
}
