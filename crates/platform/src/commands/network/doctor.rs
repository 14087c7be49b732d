//! `platform network doctor`: has the members measure the network between them, and prints what is not as it should be.

use std::collections::BTreeMap;

use api::enrollment::Member;
use api::member::LinkMeasurement;
use api::user::{
    DiagnosedMember, DoctorRequest, FindingSeverity, MeasurementState, NetworkDiagnosis,
    NetworkFinding,
};
use clap::Args;
use model::NodeId;

use crate::connection::ClusterArguments;
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments, Table, note};

const EXAMPLES: &str = "\
Examples:
  platform network doctor                   every link, from both ends
  platform network doctor n3 web-2          the links of two members, by id or name
  platform network doctor --format json     all that was measured
It takes 1 to 25 s, the longer the more is lost: each member asks its peers for echoes in the tunnel, of every size up to the MTU, sends a few hundred KiB by TCP to each, and sends one or a
few datagrams to where they are reached. With hubs it reaches 16 of the other members by way of them as well, others each time.
Exit status: 0 nothing is lost, warnings or not; 1 something is, or a member did not measure. One that is too old to measure is a note.";

/// The matrix is printed for so many members.
const MATRIX_UP_TO: usize = 10;

/// Measure the network between the members, and say what is wrong with it and what to do
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The members whose links are measured: ids (n1, e1) or names [default: all]
    #[arg(value_name = "MEMBER")]
    members: Vec<String>,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.cluster.connect()?;
    let request = DoctorRequest {
        members: arguments.members.into_iter().collect(),
    };
    let is_json = arguments.format.format == Format::Json;
    if !is_json {
        note("the members measure their links; this takes up to half a minute");
    }
    let diagnosis = client.diagnose_network(&request).await?;
    if is_json {
        output::json(json_shapes::DIAGNOSIS, &diagnosis)?;
    } else {
        print(&diagnosis)?;
    }
    if diagnosis.has_errors() {
        return Err(Failure::Said);
    }
    Ok(())
}

fn print(diagnosis: &NetworkDiagnosis) -> Result<(), Failure> {
    members(diagnosis).print()?;
    let links: Vec<(&DiagnosedMember, NodeId, &LinkMeasurement)> = (diagnosis.members.iter())
        .flat_map(|member| {
            let links = member.links.iter();
            links.map(move |(to, link)| (member, *to, link))
        })
        .collect();
    output::line("")?;
    if diagnosis.members.len() <= MATRIX_UP_TO {
        if !links.is_empty() {
            matrix(diagnosis).print()?;
            output::line("")?;
            output::line(
                "round trip in the tunnel of the row's member to the column's; / the largest packet, where it is not the cluster's MTU",
            )?;
        }
    } else {
        let ill: Vec<_> = (links.iter())
            .filter(|(_, _, link)| loses_packets(link, diagnosis.mtu))
            .collect();
        let names = names(diagnosis);
        if !ill.is_empty() {
            let mut table =
                Table::new(["FROM", "TO", "ROUND TRIP", "HANDSHAKE", "LOST", "LARGEST"]);
            for (member, to, link) in ill {
                table.row([
                    member.name.clone(),
                    name_of(&names, *to),
                    round_trip(link),
                    handshake(link),
                    lost(link),
                    link.mtu
                        .map_or_else(|| "-".to_owned(), |mtu| mtu.to_string()),
                ]);
            }
            table.print()?;
        }
    }
    findings(diagnosis)
}

/// Whether packets that one end sent did not come back.
fn loses_packets(link: &LinkMeasurement, mtu: u32) -> bool {
    let segments = link.segments;
    link.echoes.answered < link.echoes.sent
        || link.mtu.is_some_and(|measured| measured < mtu)
        || link.packet_too_big == Some(false)
        || segments.is_some_and(|segments| !segments.single || !segments.large)
}

fn names(diagnosis: &NetworkDiagnosis) -> BTreeMap<NodeId, &str> {
    let members = diagnosis.members.iter();
    members
        .filter_map(|member| Some((member.number?, member.name.as_str())))
        .collect()
}

fn name_of(names: &BTreeMap<NodeId, &str>, number: NodeId) -> String {
    let name = names.get(&number).copied();
    name.map_or_else(|| number.to_string(), str::to_owned)
}

fn members(diagnosis: &NetworkDiagnosis) -> Table {
    let header = [
        "MEMBER",
        "NAME",
        "WIREGUARD",
        "KERNEL",
        "CLOCK",
        "ANSWER",
        "HANDSHAKES",
        "UNDERLAY",
    ];
    let mut table = Table::new(header).leaving_out_first(["KERNEL", "CLOCK"]);
    for member in &diagnosis.members {
        let by = match member.carrier {
            None => "-",
            Some(carrier) if carrier.is_kernel => "kernel",
            Some(carrier) if carrier.offload => "userspace",
            Some(_) => "userspace, no offload",
        };
        let kernel = if member.kernel.is_empty() {
            "-"
        } else {
            &member.kernel
        };
        let state = match member.state {
            MeasurementState::NoAnswer => "no answer to the server".to_owned(),
            MeasurementState::NotAsked => "does not call the server".to_owned(),
            MeasurementState::TooOld => "too old to measure".to_owned(),
            MeasurementState::Failed => "could not measure".to_owned(),
            MeasurementState::Measured => answering(member),
        };
        table.row([
            member.member.to_string(),
            member.name.clone(),
            by.to_owned(),
            kernel.to_owned(),
            clock(member.clock_ahead_ms),
            state,
            handshakes(member),
            underlay(member),
        ]);
    }
    table
}

/// How many peers answer in the tunnel, and members by way of hubs.
fn answering(member: &DiagnosedMember) -> String {
    let peers = (member.links.values()).filter(|link| link.echoes.answered > 0);
    let of_peers = format!("{} of {} peers", peers.count(), member.links.len());
    if member.relayed.is_empty() {
        return of_peers;
    }
    let relayed = (member.relayed.values()).filter(|echoes| echoes.answered > 0);
    format!(
        "{of_peers}, {} of {} by hubs",
        relayed.count(),
        member.relayed.len()
    )
}

/// By how much a clock is off.
fn clock(ahead: Option<i64>) -> String {
    match ahead {
        None => "-".to_owned(),
        Some(ms) if ms.unsigned_abs() < 1000 => "right".to_owned(),
        Some(ms) => format!(
            "{}{} s",
            if ms > 0 { "+" } else { "-" },
            ms.unsigned_abs() / 1000
        ),
    }
}

/// With how many peers a member had a handshake, and how old the oldest is.
fn handshakes(member: &DiagnosedMember) -> String {
    let ages: Vec<u64> = (member.links.values())
        .filter_map(|link| link.handshake_age_seconds)
        .collect();
    let oldest = ages
        .iter()
        .max()
        .map_or(String::new(), |age| format!(", oldest {age} s"));
    if member.links.is_empty() {
        return "-".to_owned();
    }
    format!("{} of {}{oldest}", ages.len(), member.links.len())
}

/// The least MTU outside of the tunnel, and by which links.
fn underlay(member: &DiagnosedMember) -> String {
    let ways = || {
        member
            .links
            .values()
            .filter_map(|link| link.underlay.as_ref())
    };
    let Some(mtu) = ways().filter_map(|way| way.mtu).min() else {
        return "-".to_owned();
    };
    let links: std::collections::BTreeSet<&str> = ways()
        .map(|way| way.interface.as_str())
        .filter(|name| !name.is_empty())
        .collect();
    let links: Vec<_> = links.into_iter().collect();
    if links.is_empty() {
        mtu.to_string()
    } else {
        format!("{mtu} by {}", links.join(", "))
    }
}

/// Every link, a row for each member that measured.
fn matrix(diagnosis: &NetworkDiagnosis) -> Matrix<'_> {
    Matrix { diagnosis }
}

/// The links between few members.
struct Matrix<'a> {
    diagnosis: &'a NetworkDiagnosis,
}

impl Matrix<'_> {
    fn print(&self) -> Result<(), Failure> {
        for line in self.lines() {
            output::line(line)?;
        }
        Ok(())
    }

    /// Columns that are as wide as their cells: their header is of names, which tables of constants do not have.
    fn lines(&self) -> Vec<String> {
        let members = &self.diagnosis.members;
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut header = vec!["FROM \\ TO".to_owned()];
        header.extend(members.iter().map(|member| output::one_line(&member.name)));
        rows.push(header);
        for member in members {
            let mut row = vec![output::one_line(&member.name)];
            row.extend(members.iter().map(|other| self.cell(member, other)));
            rows.push(row);
        }
        let columns = members.len() + 1;
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths);
            let cells: Vec<_> = cells
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            cells.join("  ").trim_end().to_owned()
        };
        rows.iter().map(line).collect()
    }

    fn cell(&self, from: &DiagnosedMember, to: &DiagnosedMember) -> String {
        let Some(number) = to.number.filter(|_| from.member != to.member) else {
            return ".".to_owned();
        };
        if let Some(link) = from.links.get(&number) {
            let size = link.mtu.filter(|mtu| *mtu < self.diagnosis.mtu);
            let size = size.map_or(String::new(), |mtu| format!(" /{mtu}"));
            return format!("{}{size}", round_trip(link));
        }
        match from.relayed.get(&number) {
            Some(echoes) if echoes.answered > 0 => {
                format!("{} by hub", millis(echoes.fastest_us))
            }
            Some(_) => "lost by hub".to_owned(),
            None => "-".to_owned(),
        }
    }
}

fn round_trip(link: &LinkMeasurement) -> String {
    if link.echoes.sent == 0 {
        "-".to_owned()
    } else if link.echoes.answered == 0 {
        "lost".to_owned()
    } else {
        millis(link.echoes.fastest_us)
    }
}

fn millis(micros: Option<u64>) -> String {
    match micros {
        None => "-".to_owned(),
        Some(micros) if micros < 10_000 => format!("{}.{} ms", micros / 1000, micros % 1000 / 100),
        Some(micros) => format!("{} ms", micros / 1000),
    }
}

fn handshake(link: &LinkMeasurement) -> String {
    link.handshake_age_seconds
        .map_or_else(|| "none".to_owned(), |age| format!("{age} s ago"))
}

fn lost(link: &LinkMeasurement) -> String {
    let echoes = link.echoes;
    format!(
        "{} of {}",
        echoes.sent.saturating_sub(echoes.answered),
        echoes.sent
    )
}

fn findings(diagnosis: &NetworkDiagnosis) -> Result<(), Failure> {
    for finding in &diagnosis.findings {
        let severity = match finding.severity {
            FindingSeverity::Error => "error",
            FindingSeverity::Warning => "warning",
            FindingSeverity::Note => "note",
        };
        output::line("")?;
        output::line(format!(
            "{severity} ({}): {}",
            output::one_line(&finding.code),
            output::one_line(&finding.found)
        ))?;
        output::line(format!("  why: {}", output::one_line(&finding.why)))?;
        output::line(format!("  what to do: {}", output::one_line(&finding.mend)))?;
    }
    let of = |severity| {
        let of_it = |finding: &&NetworkFinding| finding.severity == severity;
        diagnosis.findings.iter().filter(of_it).count()
    };
    let (errors, warnings) = (of(FindingSeverity::Error), of(FindingSeverity::Warning));
    let links: usize = (diagnosis.members.iter())
        .map(|member| member.links.len())
        .sum();
    let took = format!(
        "{}.{} s",
        diagnosis.took_ms / 1000,
        diagnosis.took_ms % 1000 / 100
    );
    if let Some(edges) = edges_between(diagnosis) {
        note(format!(
            "between edges ({edges}) TCP and Packet Too Big were not measured: nothing may begin at an edge, so none sends them back"
        ));
    }
    if errors + warnings == 0 {
        note(format!(
            "nothing is wrong: {links} ends of links, measured in {took}"
        ));
    } else {
        note(format!(
            "{} and {}: {links} ends of links, measured in {took}",
            counted(errors, "error"),
            counted(warnings, "warning")
        ));
    }
    Ok(())
}

/// The edges that measured links to each other, by name.
fn edges_between(diagnosis: &NetworkDiagnosis) -> Option<String> {
    let is_edge = |member: &&DiagnosedMember| matches!(member.member, Member::Edge(_));
    let edges: Vec<_> = diagnosis.members.iter().filter(is_edge).collect();
    let measured = edges.iter().filter(|edge| {
        let mut others = edges.iter().filter_map(|other| other.number);
        others.any(|other| edge.links.contains_key(&other))
    });
    let names: Vec<_> = measured.map(|edge| output::one_line(&edge.name)).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use expect_test::expect;

    use super::*;

    /// What a server answered once: JSON of this form is read by programs.
    const FIXTURE: &str = include_str!("fixtures/diagnosis.json");

    fn diagnosis() -> NetworkDiagnosis {
        serde_json::from_str(FIXTURE).unwrap()
    }

    #[test]
    fn the_json_is_stable() {
        let again = serde_json::to_value(diagnosis()).unwrap();
        let recorded: serde_json::Value = serde_json::from_str(FIXTURE).unwrap();
        assert_eq!(again, recorded);
    }

    #[test]
    fn the_matrix_shows_what_is_lost_and_what_is_too_large() {
        expect![[r"
            FROM \ TO  web-1        web-2         web-3
            web-1      .            0.4 ms /1400  lost
            web-2      12 ms /1400  .             0.9 ms by hub
            web-3      -            -             ."]]
        .assert_eq(&matrix(&diagnosis()).lines().join("\n"));
    }

    #[test]
    fn the_members_fit_a_terminal() {
        output::fits(&members(&diagnosis()), 100);
    }

    #[test]
    fn a_clock_is_right_ahead_or_behind() {
        assert_eq!(clock(Some(-400)), "right");
        assert_eq!(clock(Some(61_000)), "+61 s");
        assert_eq!(clock(Some(-2_500)), "-2 s");
        assert_eq!(clock(None), "-");
    }
}
