#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use api::enrollment::Member;
use model::{EdgeId, NodeId, Timestamp};
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::*;

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(since.as_millis()).unwrap())
}

fn ca() -> ClusterCa {
    ClusterCa::generate("0123456789abcdef", now()).unwrap()
}

fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .unwrap()
}

fn key(pem: &str) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn roots(ca: &ClusterCa) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(chain(ca.certificate_pem()).remove(0)).unwrap();
    Arc::new(roots)
}

/// A server as the control plane makes it.
fn server(ca: &ClusterCa, certificate_pem: &str, key_pem: &str) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = member_verifier(Arc::unwrap_or_clone(roots(ca))).unwrap();
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(certificate_pem), key(key_pem))
        .unwrap()
}

fn good_server(ca: &ClusterCa) -> ServerConfig {
    let ips = [IpAddr::from([127, 0, 0, 1])];
    let issued = ca
        .issue_server(
            &["cp.example.com".to_owned()],
            &ips,
            ca.certificate_pem(),
            now(),
        )
        .unwrap();
    server(ca, &issued.cert_pem, &issued.key_pem)
}

fn client_builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
}

fn pinning_client(verifier: Arc<dyn ServerCertVerifier>) -> ClientConfig {
    client_builder()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth()
}

/// A whole TLS handshake in memory. Gives the certificate that the client showed.
fn handshake(
    client: ClientConfig,
    server: ServerConfig,
    name: &'static str,
) -> Result<Option<CertificateDer<'static>>, rustls::Error> {
    let name = ServerName::try_from(name).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            server.read_tls(&mut wire).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            client.read_tls(&mut wire).unwrap();
            client.process_new_packets()?;
        }
    }
    let shown = server.peer_certificates().and_then(<[_]>::first);
    Ok(shown.map(|certificate| certificate.clone().into_owned()))
}

#[test]
fn a_member_is_known_by_the_certificate_the_ca_signed() {
    let ca = ca();
    for member in [Member::Node(NodeId(7)), Member::Edge(EdgeId(65535))] {
        let member_key = MemberKey::generate().unwrap();
        let csr = member_key.csr_pem("node:n1").unwrap();
        let certificate = ca.sign_member(&csr, member, now()).unwrap();
        let client = client_builder()
            .with_root_certificates(roots(&ca))
            .with_client_auth_cert(chain(&certificate), key(&member_key.key_pem()))
            .unwrap();
        let shown = handshake(client, good_server(&ca), "cp.example.com").unwrap();
        let shown = MemberCertificate::of_der(&shown.unwrap()).unwrap();
        assert_eq!(shown.issued_to, member);
        assert_eq!(shown.key, member_key.public_key().unwrap());
        assert_eq!(shown.key, public_key_of_request(&csr).unwrap());
        assert!(shown.is_current(now()));
    }
}

#[test]
fn a_certificate_out_of_its_dates_says_who_it_is_and_that_it_is() {
    let ca = ca();
    let (member_key, member) = (MemberKey::generate().unwrap(), Member::Node(NodeId(7)));
    let csr = member_key.csr_pem("n7").unwrap();
    let year = 365 * 24 * 3600 * 1000;
    for issued in [now().0 - year, now().0 + year] {
        let certificate = ca.sign_member(&csr, member, Timestamp(issued)).unwrap();
        let client = client_builder()
            .with_root_certificates(roots(&ca))
            .with_client_auth_cert(chain(&certificate), key(&member_key.key_pem()))
            .unwrap();
        let shown = handshake(client, good_server(&ca), "cp.example.com").unwrap();
        let shown = MemberCertificate::of_der(&shown.unwrap()).unwrap();
        assert_eq!(shown.key, member_key.public_key().unwrap());
        assert!(!shown.is_current(now()));
        assert!(shown.is_current(Timestamp(issued)));
    }
    // Another CA's proves who has the key, and nothing else.
    let other = ClusterCa::generate("other", now()).unwrap();
    let certificate = other.sign_member(&csr, member, now()).unwrap();
    let client = |key_pem: &str| {
        client_builder()
            .with_root_certificates(roots(&ca))
            .with_client_auth_cert(chain(&certificate), key(key_pem))
    };
    let proved = client(&member_key.key_pem()).unwrap();
    let shown = handshake(proved, good_server(&ca), "cp.example.com").unwrap();
    let shown = shown.unwrap();
    assert!(!is_signed_by(&roots(&ca), &shown));
    assert!(is_signed_by(&roots(&other), &shown));
    // Without the key there is no connection.
    let stolen = client(&MemberKey::generate().unwrap().key_pem());
    assert!(
        stolen.is_err() || handshake(stolen.unwrap(), good_server(&ca), "cp.example.com").is_err()
    );
}

#[test]
fn who_knows_only_a_ca_from_before_follows_to_the_one_that_signs() {
    let first = ca();
    let (second, second_by_first) = first.successor(now()).unwrap();
    let (third, third_by_second) = second.successor(now()).unwrap();
    let chain_pem = format!(
        "{third_by_second}{second_by_first}{}",
        third.certificate_pem()
    );
    let issued = third
        .issue_server(&["cp.example.com".to_owned()], &[], &chain_pem, now())
        .unwrap();
    for known in [&first, &second, &third] {
        let client = client_builder()
            .with_root_certificates(roots(known))
            .with_no_client_auth();
        let server = server(&third, &issued.cert_pem, &issued.key_pem);
        handshake(client, server, "cp.example.com").unwrap();
    }
    let pinned = pinning_client(pinned_root(third.fingerprint()));
    let shown = server(&third, &issued.cert_pem, &issued.key_pem);
    handshake(pinned, shown, "cp.example.com").unwrap();
    let stranger = client_builder()
        .with_root_certificates(roots(&ca()))
        .with_no_client_auth();
    let shown = server(&third, &issued.cert_pem, &issued.key_pem);
    assert!(handshake(stranger, shown, "cp.example.com").is_err());

    // A member sees by its certificate that another one signs now.
    let csr = MemberKey::generate().unwrap().csr_pem("a").unwrap();
    let signed = first.sign_member(&csr, Member::Node(NodeId(1)), now());
    let certificate = MemberCertificate::of_pem(&signed.unwrap()).unwrap();
    let both = format!("{}{}", second.certificate_pem(), first.certificate_pem());
    assert!(certificate.is_of_first(first.certificate_pem()));
    assert!(!certificate.is_of_first(&both));
}

#[test]
fn a_member_renews_at_two_thirds_and_not_all_at_once() {
    let ca = ca();
    let day = 24 * 3600 * 1000;
    let due = |_| {
        let member_key = MemberKey::generate().unwrap();
        let csr = member_key.csr_pem("n7").unwrap();
        let signed = ca.sign_member(&csr, Member::Node(NodeId(7)), Timestamp(50 * day));
        let certificate = MemberCertificate::of_pem(&signed.unwrap()).unwrap();
        certificate.renewal_due().0 - 50 * day
    };
    let due: std::collections::BTreeSet<u64> = (0..20).map(due).collect();
    assert!(due.len() > 15, "{due:?}");
    let life = MEMBER_DAYS * day;
    for at in due {
        assert!(at > life * 11 / 20 && at < life * 2 / 3, "{at} of {life}");
    }
}

#[test]
fn a_stored_ca_goes_on_where_it_was() {
    let first = ca();
    let again = ClusterCa::load(first.certificate_pem(), first.key_pem()).unwrap();
    assert_eq!(first.fingerprint(), again.fingerprint());
    assert_eq!(
        first.fingerprint(),
        certificate_fingerprint(first.certificate_pem()).unwrap()
    );
    handshake(
        pinning_client(pinned_root(first.fingerprint())),
        good_server(&again),
        "127.0.0.1",
    )
    .unwrap();
    let other = ca();
    assert!(ClusterCa::load(first.certificate_pem(), other.key_pem()).is_err());
}

#[test]
fn a_pinned_root_accepts_its_own_cluster_and_no_other() {
    let (ours, theirs) = (ca(), ca());
    let pinned = || pinning_client(pinned_root(ours.fingerprint()));
    handshake(pinned(), good_server(&ours), "127.0.0.1").unwrap();

    let other = handshake(pinned(), good_server(&theirs), "127.0.0.1").unwrap_err();
    let rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) = other else {
        panic!("{other}");
    };
    assert!(
        other.0.to_string().contains("not of the cluster"),
        "{other:?}"
    );
    let name = handshake(pinned(), good_server(&ours), "evil.example.com").unwrap_err();
    assert!(name.to_string().contains("not valid for name"), "{name}");

    // The right root beside a leaf of another CA.
    let leaf = theirs
        .issue_server(
            &["cp.example.com".to_owned()],
            &[],
            ours.certificate_pem(),
            now(),
        )
        .unwrap();
    let first = chain(&leaf.cert_pem).remove(0);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let stolen = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![first, chain(ours.certificate_pem()).remove(0)],
            key(&leaf.key_pem),
        )
        .unwrap();
    assert!(handshake(pinned(), stolen, "cp.example.com").is_err());
}

#[test]
fn a_member_cannot_be_a_server_nor_a_server_a_member() {
    let ca = ca();
    let member_key = MemberKey::generate().unwrap();
    let csr = member_key.csr_pem("cp.example.com").unwrap();
    let certificate = ca
        .sign_member(&csr, Member::Node(NodeId(1)), now())
        .unwrap();
    let posing = server(
        &ca,
        &format!("{certificate}{}", ca.certificate_pem()),
        &member_key.key_pem(),
    );
    let pinned = pinning_client(pinned_root(ca.fingerprint()));
    assert!(handshake(pinned, posing, "cp.example.com").is_err());

    // A server is a client of the one that leads. Its certificate names no member, and a member's names no server, whatever was
    // asked for.
    let issued = ca
        .issue_server(&["x".to_owned()], &[], ca.certificate_pem(), now())
        .unwrap();
    let shown = chain(&issued.cert_pem).remove(0);
    assert!(is_server_certificate(&shown) && MemberCertificate::of_der(&shown).is_err());
    let csr = member_key.csr_pem("platform server").unwrap();
    let certificate = ca
        .sign_member(&csr, Member::Node(NodeId(1)), now())
        .unwrap();
    let shown = chain(&certificate).remove(0);
    assert!(!is_server_certificate(&shown));
    let shown = MemberCertificate::of_der(&shown).unwrap();
    assert_eq!(shown.issued_to, Member::Node(NodeId(1)));
}

#[test]
fn requests_that_are_not_well_are_refused() {
    let ca = ca();
    let node = Member::Node(NodeId(1));
    let csr = MemberKey::generate().unwrap().csr_pem("a").unwrap();
    public_key_of_request(&csr).unwrap();

    // One bit of the signature, which is at the end.
    let mut der = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(csr.as_bytes())
        .unwrap()
        .to_vec();
    *der.last_mut().unwrap() ^= 1;
    let broken = pem_of("CERTIFICATE REQUEST", &der);
    assert!(matches!(
        public_key_of_request(&broken),
        Err(CaError::Request(_))
    ));

    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let request = rcgen::CertificateParams::default()
        .serialize_request(&p384)
        .unwrap();
    let refusal = ca
        .sign_member(&request.pem().unwrap(), node, now())
        .unwrap_err();
    assert!(refusal.to_string().contains("P-256"), "{refusal}");
    assert!(public_key_of_request(&"x".repeat(MAX_CSR_BYTES + 1)).is_err());
    assert!(public_key_of_request("").is_err());
}

fn pem_of(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(String::from_utf8_lossy)
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

#[test]
fn a_certificate_of_someone_else_names_no_member() {
    for name in [
        "", "n1", "node:", "node:e1", "edge:n1", "node:n1x", "user:n1",
    ] {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        assert!(
            matches!(
                MemberCertificate::of_der(certificate.der()),
                Err(MemberCertificateError::NotAMember(_))
            ),
            "{name}"
        );
    }
    assert!(MemberCertificate::of_der(b"nonsense").is_err());
}

#[test]
fn tokens_say_what_they_are_and_show_nothing() {
    let url = Some("https://cp1:7400,https://[::1]:7400".to_owned());
    for (url, prefix) in [(None, "pt1_"), (url.clone(), "pt2_")] {
        let token = EnrollmentToken::generate([7; 32], url).unwrap();
        let text = format!(" {token}\n");
        assert!(text.trim().starts_with(prefix), "{text}");
        assert_eq!(text.parse(), Ok(token));
    }
    let token = EnrollmentToken::generate([7; 32], url).unwrap();
    let text = token.to_string();
    let again: EnrollmentToken = text.parse().unwrap();
    assert_eq!(again, token);
    assert_eq!(secret_hash(&again.secret.text()), token.secret_hash());
    assert!(!format!("{token:?}").contains(&token.secret.text()));

    let user = UserToken::generate().unwrap();
    assert_eq!(user.to_string().parse(), Ok(user.clone()));
    assert_ne!(
        user.secret_hash(),
        UserToken::generate().unwrap().secret_hash()
    );

    let wrong = user.to_string().parse::<EnrollmentToken>().unwrap_err();
    assert!(matches!(wrong, TokenError::Prefix { .. }));
    let without_url = EnrollmentToken::generate([7; 32], None).unwrap();
    let without_url = without_url.to_string();
    let cut = without_url[..without_url.len() - 1].parse::<EnrollmentToken>();
    assert!(matches!(cut, Err(TokenError::Malformed { .. })));
    let other = without_url.replace("pt1_", "pt2_");
    let other = other.parse::<EnrollmentToken>();
    assert!(matches!(other, Err(TokenError::Malformed { .. })));
    assert!(!wrong.to_string().contains(&user.to_string()));
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = text.parse::<EnrollmentToken>();
        let _ = text.parse::<UserToken>();
        let _ = is_wireguard_public_key(&text);
        let _ = public_key_of_request(&text);
        let _ = certificate_fingerprint(&text);
        let _ = MemberCertificate::of_der(text.as_bytes());
        let _ = ClusterCa::load(&text, &text);
        let _ = WireguardKey::load(&text);
    }
}

#[test]
fn a_wireguard_key_is_x25519() {
    // RFC 7748, 6.1: Alice's keys.
    let alice = WireguardKey::load("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=").unwrap();
    assert_eq!(
        alice.public_base64(),
        "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
    );
    let key = WireguardKey::generate().unwrap();
    assert!(is_wireguard_public_key(key.public_base64()));
    assert_eq!(WireguardKey::load(key.private_base64()).unwrap(), key);
    assert!(!format!("{key:?}").contains(key.private_base64()));
    assert!(WireguardKey::load("c2hvcnQ=").is_err());
    assert!(!is_wireguard_public_key("c2hvcnQ="));
}
