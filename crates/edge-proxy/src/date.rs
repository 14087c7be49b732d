//! The date that a response without one gets (RFC 9110, 6.6.1), written once a second.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

thread_local! {
    static NOW: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

/// Calls `work` with the date of now.
pub(crate) fn with_date<T>(work: impl FnOnce(&str) -> T) -> T {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    NOW.with_borrow_mut(|(of, text)| {
        if *of != seconds || text.is_empty() {
            *text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
            *of = seconds;
        }
        work(text)
    })
}
