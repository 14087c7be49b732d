//! What this edge answers to authorities of ACME that ask whether a host leads here: by a file in plain HTTP (RFC 8555, 8.3) and by a certificate over TLS (RFC
//! 8737). The server says what is asked for, and asks the authority to look only when every edge that is there has it.
//!
//! A file is answered before any route and redirect, and only where its token is known: an app that speaks ACME itself goes on to.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use api::edge::{ChallengeTable, HasRoutes};
use identity::challenge_certificate;
use rustls::sign::CertifiedKey;

/// Where the files are (RFC 8555, 8.3).
const PREFIX: &[u8] = b"/.well-known/acme-challenge/";

/// What is asked for now.
#[derive(Default)]
pub(crate) struct Challenges(RwLock<Table>);

#[derive(Default)]
struct Table {
    has: HasRoutes,
    /// The body of each file, by its token.
    files: BTreeMap<String, String>,
    /// The certificate of each host.
    certificates: BTreeMap<String, Arc<CertifiedKey>>,
}

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.read();
        f.debug_struct("Challenges")
            .field("files", &table.files.len())
            .field("certificates", &table.certificates.len())
            .finish()
    }
}

impl Challenges {
    /// Which table is in use.
    pub(crate) fn has(&self) -> HasRoutes {
        self.read().has
    }

    /// Applies a table in the place of the one before. Gives what cannot be answered, and why. Makes keys.
    pub(crate) fn take(&self, new: ChallengeTable) -> BTreeMap<String, String> {
        let mut table = Table {
            has: HasRoutes {
                generation: new.generation,
                session: new.session,
            },
            ..Table::default()
        };
        let mut unusable = BTreeMap::new();
        for challenge in new.challenges {
            if let Some(http) = challenge.http {
                table.files.insert(http.token, http.key_authorization);
            }
            if let Some(digest) = challenge.tls_alpn {
                match challenge_certificate(&challenge.host, &digest) {
                    Ok(key) => drop(table.certificates.insert(challenge.host, key)),
                    Err(error) => drop(unusable.insert(challenge.host, error.to_string())),
                }
            }
        }
        *self.write() = table;
        unusable
    }

    /// Answers nothing any more.
    pub(crate) fn clear(&self) {
        *self.write() = Table::default();
    }

    /// The file of this path, where it is one that is asked for.
    pub(crate) fn file(&self, path: &[u8]) -> Option<String> {
        let token = path.strip_prefix(PREFIX)?;
        let token = std::str::from_utf8(token).ok()?;
        self.read().files.get(token).cloned()
    }

    /// The certificate that answers for a host (lowercase).
    pub(crate) fn certificate(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        self.read().certificates.get(host).cloned()
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use api::edge::{Challenge, HttpChallenge};

    use super::*;

    pub(crate) fn table() -> ChallengeTable {
        ChallengeTable {
            generation: model::Generation {
                counter: 3,
                ..model::Generation::default()
            },
            session: model::LeaderSession(7),
            challenges: vec![
                Challenge {
                    host: "a.test".to_owned(),
                    http: Some(HttpChallenge {
                        token: "token-1".to_owned(),
                        key_authorization: "token-1.thumbprint".to_owned(),
                    }),
                    tls_alpn: None,
                },
                Challenge {
                    host: "b.test".to_owned(),
                    http: None,
                    tls_alpn: Some("07".repeat(32)),
                },
                Challenge {
                    host: "c.test".to_owned(),
                    http: None,
                    tls_alpn: Some("07".to_owned()),
                },
            ],
        }
    }

    #[test]
    fn only_what_is_asked_for_is_answered_until_something_else_is() {
        let challenges = Challenges::default();
        assert_eq!(
            challenges.file(b"/.well-known/acme-challenge/token-1"),
            None
        );
        let unusable = challenges.take(table());
        assert_eq!(unusable.keys().collect::<Vec<_>>(), ["c.test"]);
        assert_eq!(challenges.has().generation.counter, 3);
        let file = |path: &str| challenges.file(path.as_bytes());
        assert_eq!(
            file("/.well-known/acme-challenge/token-1").as_deref(),
            Some("token-1.thumbprint")
        );
        for path in [
            "/.well-known/acme-challenge/",
            "/.well-known/acme-challenge/token-2",
            "/.well-known/acme-challenge/token-1/",
            "/.well-known/acme-challenge/token-1?x",
            "/x/.well-known/acme-challenge/token-1",
            "",
        ] {
            assert_eq!(file(path), None, "{path}");
        }
        assert!(challenges.certificate("b.test").is_some());
        assert!(challenges.certificate("a.test").is_none());
        let mut next = table();
        next.challenges.clear();
        challenges.take(next);
        assert_eq!(file("/.well-known/acme-challenge/token-1"), None);
        assert!(challenges.certificate("b.test").is_none());
    }
}
