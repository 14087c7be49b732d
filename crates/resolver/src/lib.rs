//! The name server of a node's instances (ADR 0004).
//!
//! | name, in the env of who asks | leads to |
//! |---|---|
//! | `<process>.<env>.<app>.internal` | AAAA: its ready instances, another one first each time. SRV: all their ports |
//! | `<instance>.<process>.<env>.<app>.internal` | AAAA, SRV: that instance, while it is ready |
//! | `_<port>._tcp.<process>.<env>.<app>.internal`, `_http._tcp.…`, `_tcp._tcp.…` | SRV: that port, those ports |
//! | the reverse name of an instance's address | PTR: its name |
//! | all else in `internal` | nothing, whoever has it: NXDOMAIN, or an empty answer where names below exist |
//! | all other names | what the machine's name servers answer; with `egress = "none"` NXDOMAIN, at once |
//!
//! Who asks is known by the source address, which is pinned at the instance's tap. Names of other envs do not exist for it. Answers may be kept for
//! 1 to 5 seconds: as long as nothing has changed for.
//!
//! - [`names`]: which names there are, and for whom. Pure.
//! - [`answer`]: from a question's bytes to the answer's. Pure.
//! - [`process`]: the process of its own that answers, unprivileged, which outlives agents.
//! - [`agent`]: the agent's side of it, by [`control`].
//!
//! Deliberately absent: a cache of what the machine's name servers answer, because they have one, and one for all envs would tell each what others asked
//! for; DNSSEC of `internal`; answers over IPv6, because instances are given an IPv4 address to ask; TXT records.

pub mod agent;
pub mod answer;
pub mod control;
pub mod names;
pub mod process;
mod sandbox;
mod serve;
mod upstream;
