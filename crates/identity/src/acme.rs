//! Keys and certificates of ACME: of a certificate that is ordered, and of the answer to a challenge over TLS (RFC 8737).

use std::sync::Arc;

use api::acme::HostKeyType;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;

use crate::KeyError;
use crate::host_certificate::is_host_pattern;

/// What a client of TLS names by ALPN that asks whether a host leads here (RFC 8737, 4).
pub const ACME_ALPN: &[u8] = b"acme-tls/1";

/// A new key for a host's certificate, PKCS#8 PEM. Secret.
///
/// # Errors
/// No randomness.
pub fn generate_host_key(kind: HostKeyType) -> Result<String, KeyError> {
    let algorithm = match kind {
        HostKeyType::EcdsaP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        HostKeyType::EcdsaP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        HostKeyType::Rsa2048 => &rcgen::PKCS_RSA_SHA256,
    };
    let key = KeyPair::generate_for(algorithm);
    let key = key.map_err(|cause| KeyError::new("a host's key", cause))?;
    Ok(key.serialize_pem())
}

/// The request for a certificate of this key (PEM) for one name, a host or a wildcard (PKCS#10, DER).
///
/// # Errors
/// The key is none, or the name.
pub fn host_request(key_pem: &str, name: &str) -> Result<Vec<u8>, KeyError> {
    let failed = |cause: String| KeyError::new("a request for a certificate", cause);
    if !is_host_pattern(name) {
        return Err(failed(format!("`{name}` is no host")));
    }
    let key = KeyPair::from_pem(key_pem).map_err(|error| failed(error.to_string()))?;
    let params = params(name).map_err(|error| failed(error.to_string()))?;
    let request = params.serialize_request(&key);
    let request = request.map_err(|error| failed(error.to_string()))?;
    Ok(request.der().to_vec())
}

/// The certificate by which the challenge of a host is answered over TLS: of its own issuer, with the digest of the key authorization (RFC 8737, 3).
///
/// # Errors
/// The host or the digest (SHA-256, hexadecimal) is none.
pub fn challenge_certificate(host: &str, digest: &str) -> Result<Arc<CertifiedKey>, KeyError> {
    let failed = |cause: String| KeyError::new("the answer to a challenge", cause);
    let digest = of_hex(digest).ok_or_else(|| failed("its digest has another form".to_owned()))?;
    if !is_host_pattern(host) || host.starts_with('*') {
        return Err(failed(format!("`{host}` is no host")));
    }
    let key = crate::generate_key("the key of the answer to a challenge")?;
    let mut params = params(host).map_err(|error| failed(error.to_string()))?;
    params
        .custom_extensions
        .push(CustomExtension::new_acme_identifier(&digest));
    let certificate = params.self_signed(&key);
    let certificate = certificate.map_err(|error| failed(error.to_string()))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let private = PrivateKeyDer::try_from(key.serialize_der());
    let private = private.map_err(|error| failed(error.to_owned()))?;
    let private = provider.key_provider.load_private_key(private);
    let private = private.map_err(|error| failed(error.to_string()))?;
    // Not `from_der`: that reads the certificate as a client would, to whom its extension is a critical one that is not known.
    Ok(Arc::new(CertifiedKey::new(
        vec![certificate.der().clone()],
        private,
    )))
}

/// Nothing but the name: authorities take no other word of it.
fn params(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params)
}

fn of_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use x509_parser::prelude::FromDer as _;

    use super::*;
    use crate::hex;

    #[test]
    fn each_kind_of_key_asks_for_one_name_and_says_nothing_more() {
        for kind in [
            HostKeyType::EcdsaP256,
            HostKeyType::EcdsaP384,
            HostKeyType::Rsa2048,
        ] {
            let key = generate_host_key(kind).unwrap();
            for name in ["a.example.com", "*.example.com"] {
                let der = host_request(&key, name).unwrap();
                let (_, request) =
                    x509_parser::certification_request::X509CertificationRequest::from_der(&der)
                        .unwrap();
                assert_eq!(request.certification_request_info.subject.iter().count(), 0);
                request.verify_signature().unwrap();
                let names = format!(
                    "{:?}",
                    request.requested_extensions().unwrap().collect::<Vec<_>>()
                );
                assert!(names.contains(&format!("DNSName({name:?})")), "{names}");
            }
            for wrong in ["", "a b", "*", "A.example.com"] {
                assert!(host_request(&key, wrong).is_err(), "{wrong}");
            }
        }
        assert!(host_request("no key", "a.example.com").is_err());
    }

    #[test]
    fn the_answer_to_a_challenge_has_the_digest_in_a_critical_extension() {
        let digest = hex(&[7; 32]);
        let key = challenge_certificate("a.example.com", &digest).unwrap();
        let (_, certificate) =
            x509_parser::parse_x509_certificate(key.end_entity_cert().unwrap()).unwrap();
        // id-pe-acmeIdentifier.
        let found = certificate.extensions().iter();
        let found = found.filter(|extension| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.31");
        let found: Vec<_> = found.collect();
        assert_eq!(found.len(), 1);
        assert!(found[0].critical);
        assert_eq!(found[0].value, [&[4, 32][..], &[7; 32]].concat());
        for (host, digest) in [
            ("*.example.com", digest.as_str()),
            ("", &digest),
            ("a.example.com", "07"),
            ("a.example.com", &"g".repeat(64)),
            ("a.example.com", &"é".repeat(32)),
        ] {
            assert!(
                challenge_certificate(host, digest).is_err(),
                "{host} {digest}"
            );
        }
    }
}
