//! Certificates by which an edge shows that it serves a host.

use std::sync::Arc;

use model::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

/// Longest chain of certificates that is taken, in bytes of PEM.
pub const MAX_CHAIN_BYTES: usize = 32 * 1024;
/// Longest private key that is taken, in bytes of PEM. One of RSA with 8192 bits has about 6,500.
pub const MAX_CERTIFICATE_KEY_BYTES: usize = 16 * 1024;
/// Certificates of a chain, and hosts of a certificate.
const MAX_CERTIFICATES: usize = 10;
const MAX_HOSTS: usize = 100;

/// Why a certificate cannot be used for hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostCertificateError {
    /// It is longer than [`MAX_CHAIN_BYTES`] or [`MAX_CERTIFICATE_KEY_BYTES`].
    #[error("{what} is {found} bytes, more than {limit}")]
    TooLong {
        /// The chain, or the key.
        what: &'static str,
        /// Its bytes.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// There is no PEM block of a certificate.
    #[error("there is no certificate in it: it needs a block `-----BEGIN CERTIFICATE-----`")]
    NoCertificate,
    /// More than ten certificates.
    #[error("the chain has {0} certificates, more than {MAX_CERTIFICATES}")]
    TooManyCertificates(usize),
    /// A certificate cannot be parsed.
    #[error("certificate {number} of the chain cannot be read: {cause}")]
    Unreadable {
        /// Which, from 1.
        number: usize,
        /// What the parser said.
        cause: String,
    },
    /// A certificate is not of the issuer that follows it.
    #[error(
        "certificate {number} of the chain was issued by `{issuer}`, and the next one is of `{next}`: a certificate is followed by \
         its issuer's"
    )]
    OutOfOrder {
        /// Which, from 1.
        number: usize,
        /// Its issuer.
        issuer: String,
        /// The subject of the one after it.
        next: String,
    },
    /// The first certificate names no host in its alternative names.
    #[error(
        "the first certificate names no host: it has no DNS name among its subject alternative names"
    )]
    NoHost,
    /// A name in it is none that a request may have.
    #[error("the first certificate is for `{0}`, which is no host and no `*.` before a host")]
    NotAHost(String),
    /// More than a hundred hosts.
    #[error("the first certificate is for {0} hosts, more than {MAX_HOSTS}")]
    TooManyHosts(usize),
    /// There is no PEM block of a private key.
    #[error(
        "there is no private key in it: it needs a block `-----BEGIN PRIVATE KEY-----`, `.. RSA PRIVATE KEY-----` or `.. EC PRIVATE KEY-----`, without \
         a passphrase"
    )]
    NoKey,
    /// The key is of a kind or a size that TLS libraries do not take.
    #[error(
        "the private key cannot be used: {0}; RSA of 2048 bits or more, ECDSA P-256, P-384 and P-521, and Ed25519 can"
    )]
    Key(String),
    /// The key is another certificate's.
    #[error("the private key does not belong to the first certificate")]
    OtherKey,
}

/// What a chain of certificates says: its first one is the host's, each other the issuer of the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCertificate {
    /// The hosts it is for, lowercase, as the certificate names them: `a.example.com`, `*.example.com`.
    pub hosts: Vec<String>,
    /// Who issued it, for people.
    pub issuer: String,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
}

impl HostCertificate {
    /// Reads a chain in PEM.
    ///
    /// # Errors
    /// It is none for hosts.
    pub fn of_pem(chain_pem: &str) -> Result<Self, HostCertificateError> {
        Self::of_chain(&chain(chain_pem)?)
    }

    fn of_chain(chain: &[CertificateDer<'_>]) -> Result<Self, HostCertificateError> {
        if chain.len() > MAX_CERTIFICATES {
            return Err(HostCertificateError::TooManyCertificates(chain.len()));
        }
        let parsed: Vec<_> = chain
            .iter()
            .enumerate()
            .map(|(at, der)| parsed(at + 1, der))
            .collect::<Result<_, _>>()?;
        for (at, pair) in parsed.windows(2).enumerate() {
            if let [one, next] = pair
                && one.issuer().as_raw() != next.subject().as_raw()
            {
                return Err(HostCertificateError::OutOfOrder {
                    number: at + 1,
                    issuer: one.issuer().to_string(),
                    next: next.subject().to_string(),
                });
            }
        }
        let first = parsed.first().ok_or(HostCertificateError::NoCertificate)?;
        let names = first.subject_alternative_name();
        let names = names.map_err(|error| HostCertificateError::Unreadable {
            number: 1,
            cause: error.to_string(),
        })?;
        let names = names.iter().flat_map(|names| &names.value.general_names);
        let mut hosts: Vec<String> = Vec::new();
        for name in names {
            if let GeneralName::DNSName(name) = name {
                let host = name.to_ascii_lowercase();
                if !is_host_pattern(&host) {
                    return Err(HostCertificateError::NotAHost(host));
                }
                if !hosts.contains(&host) {
                    hosts.push(host);
                }
            }
        }
        if hosts.is_empty() {
            return Err(HostCertificateError::NoHost);
        }
        if hosts.len() > MAX_HOSTS {
            return Err(HostCertificateError::TooManyHosts(hosts.len()));
        }
        let validity = first.validity();
        let time = |at: x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(at.timestamp()).unwrap_or(0);
            Timestamp(seconds.saturating_mul(1000))
        };
        Ok(Self {
            hosts,
            issuer: issuer_of(first),
            not_before: time(validity.not_before),
            not_after: time(validity.not_after),
        })
    }

    /// When the next one is asked for: at two thirds of its life.
    pub fn renewal_due(&self) -> Timestamp {
        let life = self.not_after.millis_since(self.not_before);
        Timestamp(self.not_after.0.saturating_sub(life / 3))
    }
}

fn parsed<'d>(
    number: usize,
    der: &'d CertificateDer<'_>,
) -> Result<X509Certificate<'d>, HostCertificateError> {
    let unreadable = |cause: String| HostCertificateError::Unreadable { number, cause };
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(unreadable("there is more after its end".to_owned())),
        Err(error) => Err(unreadable(error.to_string())),
    }
}

/// The issuer as people call it: its common name, else its organisation, else all of its name.
fn issuer_of(certificate: &X509Certificate<'_>) -> String {
    let issuer = certificate.issuer();
    let name = issuer.iter_common_name().next();
    let name = name.or_else(|| issuer.iter_organization().next());
    let text = name.and_then(|name| name.as_str().ok());
    text.map_or_else(|| issuer.to_string(), str::to_owned)
}

fn chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, HostCertificateError> {
    if pem.len() > MAX_CHAIN_BYTES {
        return Err(HostCertificateError::TooLong {
            what: "the chain of certificates",
            found: pem.len(),
            limit: MAX_CHAIN_BYTES,
        });
    }
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .enumerate()
        .map(|(at, der)| {
            der.map_err(|error| HostCertificateError::Unreadable {
                number: at + 1,
                cause: error.to_string(),
            })
        })
        .collect::<Result<_, _>>()?;
    if chain.is_empty() {
        return Err(HostCertificateError::NoCertificate);
    }
    Ok(chain)
}

/// A certificate with its key, as TLS uses it, and what it says. Whether it is within its dates is not looked at.
///
/// # Errors
/// It is none for hosts, or the key is not its key, or of a kind that is not taken.
pub fn certified_key(
    chain_pem: &str,
    key_pem: &str,
) -> Result<(HostCertificate, Arc<CertifiedKey>), HostCertificateError> {
    let chain = chain(chain_pem)?;
    let certificate = HostCertificate::of_chain(&chain)?;
    if key_pem.len() > MAX_CERTIFICATE_KEY_BYTES {
        return Err(HostCertificateError::TooLong {
            what: "the private key",
            found: key_pem.len(),
            limit: MAX_CERTIFICATE_KEY_BYTES,
        });
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|_| HostCertificateError::NoKey)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => HostCertificateError::OtherKey,
        other => HostCertificateError::Key(other.to_string()),
    })?;
    Ok((certificate, Arc::new(key)))
}

/// Whether it is a host, lowercase and in ASCII, or `*.` before one of two labels or more.
pub(crate) fn is_host_pattern(text: &str) -> bool {
    let (host, labels) = match text.strip_prefix("*.") {
        Some(rest) => (rest, 2),
        None => (text, 1),
    };
    let is_label = |label: &str| {
        let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(is_good)
    };
    text.len() <= 253 && host.split('.').count() >= labels && host.split('.').all(is_label)
}

/// What a certificate may be for to fit a host: the host, then the wildcard in the place of its first label (RFC 6125, 6.4.3).
pub fn host_patterns(host: &str) -> impl Iterator<Item = String> {
    let wildcard = host
        .split_once('.')
        .filter(|(_, rest)| rest.contains('.'))
        .map(|(_, rest)| format!("*.{rest}"));
    std::iter::once(host.to_owned()).chain(wildcard)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::{IngressCa, MemberKey};

    const DAY: u64 = 24 * 3600 * 1000;
    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn self_signed(names: &[&str], key: &KeyPair) -> String {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        params.self_signed(key).unwrap().pem()
    }

    #[test]
    fn a_chain_tells_its_hosts_and_its_issuer() {
        let key = KeyPair::generate().unwrap();
        let pem = self_signed(
            &["Shop.example.com", "*.shop.example.com", "127.0.0.1"],
            &key,
        );
        let (certificate, _) = certified_key(&pem, &key.serialize_pem()).unwrap();
        assert_eq!(
            certificate.hosts,
            ["shop.example.com", "*.shop.example.com"]
        );
        assert_eq!(certificate.issuer, "rcgen self signed cert");
        assert_eq!(HostCertificate::of_pem(&pem).unwrap(), certificate);
    }

    #[test]
    fn every_key_that_is_named_as_usable_is() {
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ECDSA_P521_SHA512,
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_RSA_SHA256,
        ] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let pem = self_signed(&["a.example.com"], &key);
            certified_key(&pem, &key.serialize_pem()).unwrap();
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        use HostCertificateError as Wrong;
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let key_pem = key.serialize_pem();
        let good = self_signed(&["a.example.com"], &key);
        let refused = |chain: &str, key: &str| certified_key(chain, key).map(drop).unwrap_err();
        assert_eq!(refused("", &key_pem), Wrong::NoCertificate);
        assert_eq!(refused(&key_pem, &key_pem), Wrong::NoCertificate);
        assert_eq!(refused(&good, ""), Wrong::NoKey);
        assert_eq!(refused(&good, &good), Wrong::NoKey);
        assert_eq!(refused(&good, &other.serialize_pem()), Wrong::OtherKey);
        let long = format!("{good}{}", " ".repeat(MAX_CHAIN_BYTES));
        assert!(matches!(refused(&long, &key_pem), Wrong::TooLong { .. }));
        let no_host = self_signed(&["127.0.0.1"], &key);
        assert_eq!(refused(&no_host, &key_pem), Wrong::NoHost);
        for name in ["*.com", "a.*.example.com", "*", "a_b.example.com"] {
            let pem = self_signed(&[name], &key);
            assert_eq!(refused(&pem, &key_pem), Wrong::NotAHost(name.to_owned()));
        }
        let damaged = good.replacen("MII", "MIJ", 1);
        let refused_damaged = refused(&damaged, &key_pem);
        assert!(
            matches!(refused_damaged, Wrong::Unreadable { number: 1, .. }),
            "{refused_damaged}"
        );
        let stranger = crate::ClusterCa::generate("c1", NOW).unwrap();
        let wrong_order = format!("{good}{}", stranger.certificate_pem());
        assert!(matches!(
            refused(&wrong_order, &key_pem),
            Wrong::OutOfOrder { number: 1, .. }
        ));
    }

    #[test]
    fn the_ingress_ca_signs_hosts_and_is_no_members_ca() {
        let ca = IngressCa::generate("c1", NOW).unwrap();
        let ca = IngressCa::load(ca.certificate_pem(), ca.key_pem()).unwrap();
        let key = MemberKey::generate().unwrap();
        let host = format!("{}.example.com", "a".repeat(63));
        let leaf = ca
            .sign_host(&key.csr_pem("x").unwrap(), &host, NOW)
            .unwrap();
        let chain = format!("{leaf}{}", ca.certificate_pem());
        let (certificate, _) = certified_key(&chain, &key.key_pem()).unwrap();
        assert_eq!(certificate.hosts, [host]);
        assert_eq!(certificate.issuer, "platform ingress c1");
        assert_eq!(certificate.not_after.0, NOW.0 + INGRESS_DAYS_MS);
        assert!(
            certificate.renewal_due() > NOW && certificate.renewal_due() < certificate.not_after
        );
        assert!(crate::MemberCertificate::of_pem(&leaf).is_err());
        let der = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
        assert!(!crate::is_server_certificate(&der));
        for wrong in ["", "a b", "ä.example.com", "*.example.com", "A.example.com"] {
            let csr = key.csr_pem("x").unwrap();
            assert!(ca.sign_host(&csr, wrong, NOW).is_err(), "{wrong}");
        }
        // What trusts the cluster's CA trusts nothing of this one.
        let cluster = crate::ClusterCa::generate("c1", NOW).unwrap();
        assert!(IngressCa::load(cluster.certificate_pem(), ca.key_pem()).is_err());
        let ca_der = CertificateDer::from_pem_slice(cluster.certificate_pem().as_bytes()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca_der).unwrap();
        assert!(!crate::is_signed_by(&roots, &der));
    }

    const INGRESS_DAYS_MS: u64 = crate::INGRESS_DAYS * DAY;

    #[test]
    fn a_host_fits_itself_and_the_wildcard_of_its_first_label() {
        let of = |host| host_patterns(host).collect::<Vec<_>>();
        assert_eq!(of("a.example.com"), ["a.example.com", "*.example.com"]);
        assert_eq!(of("hello.localhost"), ["hello.localhost"]);
        assert_eq!(of("localhost"), ["localhost"]);
    }
}
