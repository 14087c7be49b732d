//! What the test of every format is: the tests of other crates call it with their fixtures.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;

use crate::{FormatError, StateFormat, VERSION_FIELD, decode, encode};

/// Checks a format by the files of its versions, oldest first: there is one of each version, each is read with and without
/// an added field, what was read is written as the newest, and a file of a newer version is named as such.
///
/// # Panics
/// The format does not do so.
pub fn check<T: StateFormat>(files: &[&str]) {
    assert_eq!(
        files.len(),
        T::VERSION as usize,
        "a version has no fixture, or a fixture has no version"
    );
    let newest: Value = serde_json::from_str(files.last().unwrap()).unwrap();
    for (version, text) in (1..).zip(files) {
        let mut json: Value = serde_json::from_str(text).unwrap();
        let named = json.get(VERSION_FIELD).map_or(1, |v| v.as_u64().unwrap());
        assert_eq!(named, version, "{text}");
        json["added_later"] = true.into();
        for text in [(*text).to_owned(), json.to_string()] {
            let read: T = decode(text.as_bytes()).unwrap();
            let written: Value = serde_json::from_slice(&encode(&read).unwrap()).unwrap();
            assert_eq!(written, newest);
        }
    }
    let mut newer = newest;
    newer[VERSION_FIELD] = (T::VERSION + 1).into();
    let refused = decode::<T>(newer.to_string().as_bytes());
    let is_named = matches!(refused, Err(FormatError::Newer { .. }));
    assert!(is_named, "a file of a newer version is read");
}
