//! What names of Rust's items mean to readers of the description, who have not the sources.

use crate::{acme, certificates, event, paths, user, why};

const HOUR_MS: u64 = 60 * 60 * 1000;

/// What takes the place of an item's name, as doc comments have it in a link: the value of a constant, a path, else the last part of the name.
pub(super) fn meaning(link: &str) -> String {
    let Some(name) = (link.strip_prefix('`')).and_then(|name| name.strip_suffix('`')) else {
        return link.to_owned();
    };
    let name = name.strip_prefix("crate::").unwrap_or(name);
    let last = name.rsplit("::").next().unwrap_or(name);
    match name {
        "paths::ACME" => format!("`{}`", paths::ACME),
        "paths::ATTACH" => format!("`{}`", paths::ATTACH),
        "paths::CERTIFICATES" => format!("`{}`", paths::CERTIFICATES),
        "paths::INGRESS_CA" => format!("`{}`", paths::INGRESS_CA),
        "paths::NETWORK" => format!("`{}`", paths::NETWORK),
        "paths::NETWORK_DOCTOR" => format!("`{}`", paths::NETWORK_DOCTOR),
        "paths::SIGNAL" => format!("`{}`", paths::SIGNAL),
        _ => match last {
            "DEFAULT_COMMAND_LIFETIME_MS" => hours(user::DEFAULT_COMMAND_LIFETIME_MS),
            "MAX_COMMAND_LIFETIME_MS" => hours(user::MAX_COMMAND_LIFETIME_MS),
            "EXPIRES_SOON_MS" => hours(certificates::EXPIRES_SOON_MS),
            "DEFAULT_TAIL" => user::DEFAULT_TAIL.to_string(),
            "MAX_ACME_NAMES_LISTED" => acme::MAX_ACME_NAMES_LISTED.to_string(),
            "MAX_DOCTOR_MEMBERS" => user::MAX_DOCTOR_MEMBERS.to_string(),
            "MAX_EVENTS_LISTED" => event::MAX_EVENTS_LISTED.to_string(),
            "MAX_EVENT_MESSAGE_BYTES" => bytes(event::MAX_EVENT_MESSAGE_BYTES),
            "MAX_EXEC_COMMAND_BYTES" => bytes(user::MAX_EXEC_COMMAND_BYTES),
            "MAX_LOG_TEXT_BYTES" => bytes(user::MAX_LOG_TEXT_BYTES),
            "MAX_NAME_BYTES" => bytes(model::ids::MAX_NAME_BYTES),
            "MAX_PAGE" => user::MAX_PAGE.to_string(),
            "MAX_TOKEN_NOTE_BYTES" => bytes(user::MAX_TOKEN_NOTE_BYTES),
            "MAX_USER_TOKEN_SECONDS" => user::MAX_USER_TOKEN_SECONDS.to_string(),
            "MAX_WAIT_MS" => crate::MAX_WAIT_MS.to_string(),
            "MAX_WHY_EVENTS" => why::MAX_WHY_EVENTS.to_string(),
            "MAX_WHY_INSTANCES" => why::MAX_WHY_INSTANCES.to_string(),
            "ORDERS_PER_HOUR" => acme::ORDERS_PER_HOUR.to_string(),
            _ => format!("`{last}`"),
        },
    }
}

fn hours(millis: u64) -> String {
    format!("{millis} ({} h)", millis / HOUR_MS)
}

fn bytes(count: usize) -> String {
    format!("{count} bytes")
}
