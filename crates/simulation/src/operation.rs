//! What happens to a cluster in a run, and what is drawn from.

use manifest::Strategy;

use crate::simulator::App;

/// Something that an operator does or that befalls a cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Operation {
    Deploy,
    Scale,
    /// A user runs a command in an instance of its own.
    Run,
    KillAgent,
    Reboot,
    KillVm,
    CrashApp,
    Partition,
    MassPartition,
    ServerDown,
    DiskFull,
    RegistryDown,
    LossyLink,
    FailingBoots,
    DamageRecord,
    UnreadableVm,
    WrongStates,
    Schedule,
    BackUp,
    Restore,
    PauseServer,
    CutStore,
    CutServers,
    StepServerClock,
    StepDatabaseClock,
    RemoveNode,
    RevokeNode,
    AddNode,
    Heal,
}

/// What is drawn from, those that happen more often more than once.
pub(crate) const OPERATIONS: [Operation; 37] = [
    Operation::Deploy,
    Operation::Deploy,
    Operation::Deploy,
    Operation::Scale,
    Operation::Scale,
    Operation::Run,
    Operation::Run,
    Operation::KillAgent,
    Operation::KillAgent,
    Operation::KillAgent,
    Operation::Reboot,
    Operation::KillVm,
    Operation::CrashApp,
    Operation::Partition,
    Operation::MassPartition,
    Operation::ServerDown,
    Operation::ServerDown,
    Operation::PauseServer,
    Operation::PauseServer,
    Operation::CutStore,
    Operation::CutServers,
    Operation::StepServerClock,
    Operation::StepDatabaseClock,
    Operation::RemoveNode,
    Operation::RevokeNode,
    Operation::AddNode,
    Operation::DiskFull,
    Operation::RegistryDown,
    Operation::LossyLink,
    Operation::FailingBoots,
    Operation::DamageRecord,
    Operation::UnreadableVm,
    Operation::WrongStates,
    Operation::Schedule,
    Operation::Schedule,
    Operation::Heal,
    Operation::Heal,
];
/// Apps that do not run.
pub(crate) const BAD_APPS: [App; 6] = [
    App::NotFound,
    App::Exits(0),
    App::Exits(3),
    App::Unhealthy,
    App::NoImage,
    App::Hangs,
];
/// Apps that run.
pub(crate) const GOOD_APPS: [App; 3] = [App::Healthy, App::SlowImage, App::HangsOnce];

/// Ways in which releases replace one another.
pub(crate) const STRATEGIES: [Strategy; 6] = [
    Strategy::Rolling,
    Strategy::Rolling,
    Strategy::Rolling,
    Strategy::Immediate,
    Strategy::Canary,
    Strategy::BlueGreen,
];

/// What a cluster's machines are short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scarce {
    Nothing,
    Memory,
    Cpu,
    Disk,
}

/// What was deployed.
pub(crate) struct Deployed {
    pub(crate) app: App,
    pub(crate) count: u32,
    pub(crate) workers: u32,
    pub(crate) surge: u32,
    pub(crate) unavailable: u32,
    pub(crate) volumes: bool,
    pub(crate) strategy: Strategy,
    pub(crate) min_healthy_ms: u64,
}
