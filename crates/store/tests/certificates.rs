//! Certificates of hosts and the cluster's keys for edges, in both stores.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use model::{Term, Timestamp};
use scheduler::acme::AcmeRecord;
use store::{StoreError, StoredAcmeName, StoredCertificate};
use support::*;

on_both_stores!(
    certificates_are_kept_replaced_and_removed,
    keys_for_edges_are_kept_and_replaced,
    what_is_remembered_of_a_name_is_kept_replaced_and_forgotten,
);

fn certificate(name: &str, sealed: &[u8]) -> StoredCertificate {
    StoredCertificate {
        name: name.to_owned(),
        chain_pem: format!("chain of {name}"),
        sealed: sealed.to_vec(),
        source: "operator".to_owned(),
        by: "admin".to_owned(),
        at: NOW,
    }
}

async fn certificates_are_kept_replaced_and_removed(place: Place) {
    let store = place.open().await;
    assert!(store.certificates().await.unwrap().is_empty());
    let (b, a) = (
        certificate("b.example.com", b"\0\xff"),
        certificate("*.example.com", b"1"),
    );
    for one in [&b, &a] {
        store.set_certificate(store.term, one).await.unwrap();
    }
    assert_eq!(store.certificates().await.unwrap(), [a.clone(), b.clone()]);
    let mut other = certificate("b.example.com", b"2");
    other.at = Timestamp(NOW.0 + 1);
    store.set_certificate(store.term, &other).await.unwrap();
    assert_eq!(store.certificates().await.unwrap(), [a.clone(), other]);
    assert!(
        store
            .remove_certificate(store.term, "b.example.com")
            .await
            .unwrap()
    );
    assert!(
        !store
            .remove_certificate(store.term, "b.example.com")
            .await
            .unwrap()
    );
    assert_eq!(store.certificates().await.unwrap(), [a]);
    assert!(!format!("{b:?}").contains("255"));
}

async fn keys_for_edges_are_kept_and_replaced(place: Place) {
    let store = place.open().await;
    assert_eq!(store.ingress_key("ca").await.unwrap(), None);
    store
        .set_ingress_key(store.term, "ca", b"one", NOW)
        .await
        .unwrap();
    store
        .set_ingress_key(store.term, "tickets", b"two", NOW)
        .await
        .unwrap();
    assert_eq!(
        store.ingress_key("ca").await.unwrap(),
        Some((b"one".to_vec(), NOW))
    );
    let later = Timestamp(NOW.0 + 5);
    store
        .set_ingress_key(store.term, "ca", b"three", later)
        .await
        .unwrap();
    assert_eq!(
        store.ingress_key("ca").await.unwrap(),
        Some((b"three".to_vec(), later))
    );
    assert_eq!(
        store.ingress_key("tickets").await.unwrap(),
        Some((b"two".to_vec(), NOW))
    );
}

async fn what_is_remembered_of_a_name_is_kept_replaced_and_forgotten(place: Place) {
    let store = place.open().await;
    let stored = |name: &str, failures: u32, sealed: Option<&[u8]>| StoredAcmeName {
        name: name.to_owned(),
        record: AcmeRecord {
            failures,
            not_before: NOW,
            ..AcmeRecord::default()
        },
        sealed: sealed.map(<[u8]>::to_vec),
    };
    let (a, b) = (
        stored("a.example.com", 1, Some(b"\0\xff")),
        stored("*.example.com", 2, None),
    );
    for one in [&a, &b] {
        store.set_acme_name(store.term, one).await.unwrap();
    }
    assert_eq!(store.acme_names().await.unwrap(), [b.clone(), a.clone()]);
    let next = stored("a.example.com", 0, None);
    store.set_acme_name(store.term, &next).await.unwrap();
    assert_eq!(store.acme_names().await.unwrap(), [b.clone(), next]);
    store
        .delete_acme_names(store.term, &["a.example.com", "c.example.com"])
        .await
        .unwrap();
    assert_eq!(store.acme_names().await.unwrap(), [b]);
    assert!(!format!("{a:?}").contains("255"));
}

#[tokio::test]
async fn none_is_written_in_a_term_that_is_over() {
    let place = Place::postgres().await;
    let old = place.open().await;
    let new = place.open().await;
    assert!(new.term > old.term);
    let is_over = |result: Result<(), StoreError>| {
        assert!(
            matches!(result, Err(StoreError::LeaseLost { .. })),
            "{result:?}"
        );
    };
    let one = certificate("a.example.com", b"1");
    is_over(old.set_certificate(old.term, &one).await);
    is_over(
        old.remove_certificate(old.term, "a.example.com")
            .await
            .map(drop),
    );
    is_over(old.set_ingress_key(old.term, "ca", b"1", NOW).await);
    assert!(new.certificates().await.unwrap().is_empty());
    assert!(old.term > Term(0));
}
