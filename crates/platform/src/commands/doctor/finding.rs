//! What `platform doctor` found of one thing.

use schemars::JsonSchema;
use serde::Serialize;

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Nothing is missing.
    Ok,
    /// The roles run without it, slower or less safe.
    Warning,
    /// A role does not run without it.
    Missing,
}

impl Severity {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Missing => "missing",
        }
    }
}

/// What was found of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Finding {
    /// What was checked.
    pub(super) check: &'static str,
    /// How much it matters.
    pub(super) severity: Severity,
    /// What was found.
    pub(super) found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mend: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            severity: Severity::Ok,
            found: found.into(),
            mend: None,
        }
    }

    pub(super) fn warning(
        check: &'static str,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            check,
            severity: Severity::Warning,
            found: found.into(),
            mend: Some(mend.into()),
        }
    }

    pub(super) fn missing(
        check: &'static str,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Missing,
            ..Self::warning(check, found, mend)
        }
    }
}
