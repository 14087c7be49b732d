//! What `platform node join` and `platform edge join` have in common.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use api::enrollment::Member;
use api::member::{DEFAULT_OVERLAY_PORT, MIN_OVERLAY_MTU, WIREGUARD_OVERHEAD};
use api_client::ClientError;
use clap::Args;
use membership::{Membership, UnderlayOptions};

use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, note};
use crate::printed::{JoinedMember, RoleStart};
use crate::role_options::KeptUnderlay;

/// The region of a machine whose operator says none.
pub(super) fn default_region() -> String {
    "local".to_owned()
}

/// How long a join waits for a server that cannot be reached.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before it asks again, unless the server names another.
const PAUSE: Duration = Duration::from_secs(1);

/// How the peers of this machine reach it over the underlay.
#[derive(Debug, Args)]
pub(super) struct UnderlayArguments {
    /// UDP port of WireGuard; several members on one machine need one each [default: what `join` was given, else 51820, of an edge 51821]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    overlay_port: Option<u16>,
    /// Where other members reach this machine, such as 203.0.113.7 or [2001:db8::7]:51820. Needed behind a NAT that forwards
    /// the port [default: the address that the server sees]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_advertise)]
    advertise: Option<SocketAddr>,
}

impl UnderlayArguments {
    pub(super) fn kept(&self) -> KeptUnderlay {
        KeptUnderlay {
            port: self.overlay_port,
            advertise: self.advertise,
        }
    }
}

/// An address with or without a port; without, the port is 0: that of WireGuard.
fn parse_advertise(text: &str) -> Result<SocketAddr, String> {
    let plain = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let parsed = match plain.unwrap_or(text).parse::<IpAddr>() {
        Ok(address) => Ok(SocketAddr::new(address, 0)),
        Err(_) => text.parse::<SocketAddr>(),
    };
    let address = parsed.map_err(|_| {
        format!("`{text}` is no IP address, with or without a port: 203.0.113.7, 203.0.113.7:{DEFAULT_OVERLAY_PORT} or [2001:db8::7]:{DEFAULT_OVERLAY_PORT}")
    })?;
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    let ip = address.ip();
    if ip.is_loopback() || !overlay::underlay::may_be_endpoint(ip) {
        return Err(format!("nobody reaches this machine at {ip}"));
    }
    Ok(address)
}

/// After which pause the server is asked again; absent where it would answer the same.
pub(super) fn pause_after(error: &ClientError) -> Option<Duration> {
    (error.is_transient()).then(|| error.retry_after().unwrap_or(PAUSE))
}

/// Joins, and tries again for a minute while the server cannot be reached. `unreached`: the pause before that, where the error is of this kind.
/// Says why, once for each reason.
pub(super) async fn patiently<E: std::error::Error + 'static>(
    join: impl AsyncFn() -> Result<Membership, E>,
    unreached: impl Fn(&E) -> Option<Duration>,
) -> Result<Membership, E> {
    let began = Instant::now();
    let mut said = String::new();
    loop {
        match join().await {
            Err(error) if began.elapsed() < PATIENCE => match unreached(&error) {
                Some(pause) => {
                    let why = display::chain(&error);
                    if why != said {
                        note(format!("{why}; trying again, for a minute"));
                        said = why;
                    }
                    tokio::time::sleep(pause).await;
                }
                None => return Err(error),
            },
            joined => return joined,
        }
    }
}

/// What a join came to. Where it failed, a machine that was to join anew is who it was.
pub(super) async fn or_who_it_was<E>(
    joined: Result<Membership, E>,
    data_dir: &Path,
) -> Result<Membership, Failure>
where
    Failure: From<E>,
{
    if joined.is_err() {
        membership::take_back(data_dir).await?;
    }
    Ok(joined?)
}

/// What a join was given that only a machine which joins anew goes by.
#[derive(Debug, Clone, Default)]
pub(super) struct Given {
    pub(super) server: Option<String>,
    pub(super) name: Option<String>,
    pub(super) region: Option<String>,
    /// Whether a token was.
    pub(super) token: bool,
}

/// Says that this machine joined before, and what it was given that is not as it is.
pub(super) fn note_known(known: &Membership, given: &Given) {
    note(format!(
        "this machine is {} ({}) of the cluster {} already; `--again` joins anew, with a new token",
        known.member, known.name, known.cluster
    ));
    for line in differences(known, given) {
        note(line);
    }
}

/// Each option that is not as the member is, and what to do; whether its token was used.
fn differences(known: &Membership, given: &Given) -> Vec<String> {
    let role = known.member.role();
    let mut lines = Vec::new();
    let differs =
        |given: &Option<String>, known: &str| given.clone().filter(|given| given != known);
    if let Some(server) = differs(&given.server, &known.server) {
        lines.push(format!(
            "warning: --server {server} is not used: the server stays {}\n  hint: stop the {role}, then `platform {role} --server {server}` once: it is remembered",
            known.server
        ));
    }
    for (flag, given, known) in [
        ("--name", &given.name, &known.name),
        ("--region", &given.region, &known.region),
    ] {
        if let Some(given) = differs(given, known) {
            lines.push(format!(
                "warning: {flag} {given} is not used: it stays {known}\n  hint: `platform {role} join --again {flag} {given}` joins anew, with a new token"
            ));
        }
    }
    if given.token {
        lines.push("the token is not looked at, and not spent".to_owned());
    }
    lines
}

/// Prints who this machine is, unless that is for a program, and what it waits for.
pub(super) async fn print(joined: &Membership, format: FormatArguments) -> Result<(), Failure> {
    let (member, name) = (joined.member, &joined.name);
    if format.format == Format::Text {
        output::line(format!("joined as {member} ({name})"))?;
    }
    let underlay = membership::underlay(&joined.server, UnderlayOptions::default()).await;
    if let Some(least) = underlay.mtu.filter(|_| !underlay.fits(joined.mtu)) {
        note(format!(
            "warning: this machine's network has an MTU of {least}, into which the overlay's {} and WireGuard's {WIREGUARD_OVERHEAD} bytes do not fit",
            joined.mtu
        ));
        let fits = least
            .saturating_sub(WIREGUARD_OVERHEAD)
            .max(MIN_OVERLAY_MTU);
        note(format!(
            "  hint: `platform network set --mtu {fits}`; `platform network` says what fits all members"
        ));
    }
    if joined.pending {
        if let Some(key) = joined.key_fingerprint() {
            note(format!("key: {key}"));
        }
        let list = match member {
            Member::Node(_) => "nodes",
            Member::Edge(_) => "edges",
        };
        note(format!(
            "waits for approval: compare the key, then `platform {list} approve {member}`"
        ));
    }
    Ok(())
}

/// Prints who this machine is to programs, once its role is started; people have read it.
pub(super) fn print_member(
    format: FormatArguments,
    member: Membership,
    is_new: bool,
    options_changed: bool,
    start: RoleStart,
) -> Result<(), Failure> {
    if format.format == Format::Text {
        return Ok(());
    }
    let joined = JoinedMember {
        key: member.key_fingerprint(),
        role: member.member.role(),
        id: member.member.to_string(),
        name: member.name,
        region: member.region,
        server: member.server,
        cluster: member.cluster,
        is_new,
        pending: is_new && member.pending,
        options_changed,
        start,
    };
    output::json(json_shapes::JOINED, &joined)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn options_that_a_member_does_not_go_by_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let member = include_str!("../../../membership/src/fixtures/member/version-1.json");
        std::fs::write(Membership::file(dir.path()), member).unwrap();
        let known = Membership::load(dir.path()).unwrap().unwrap();
        let same = Given {
            server: Some(known.server.clone()),
            name: Some(known.name.clone()),
            region: Some(known.region.clone()),
            token: false,
        };
        assert_eq!(differences(&known, &same), [""; 0]);
        assert_eq!(differences(&known, &Given::default()), [""; 0]);
        let others = Given {
            server: Some("https://other.example.com:7400".to_owned()),
            name: Some("other".to_owned()),
            region: Some("elsewhere".to_owned()),
            token: true,
        };
        let said = differences(&known, &others);
        assert_eq!(said.len(), 4, "{said:?}");
        for (line, option) in said.iter().zip([
            "--server https://other",
            "--name other",
            "--region elsewhere",
        ]) {
            assert!(line.starts_with(&format!("warning: {option}")), "{line}");
            assert!(line.contains("\n  hint: "), "{line}");
        }
    }
}
