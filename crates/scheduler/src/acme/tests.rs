#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::unnecessary_wraps, reason = "as a plan is given them")]

use proptest::prelude::*;

use super::*;

const DAY: u64 = 24 * 60 * 60 * 1000;
const NOW: Timestamp = Timestamp(1_900_000_000_000);

fn at(days: u64) -> Timestamp {
    Timestamp(NOW.0 + days * DAY)
}

fn public() -> Option<Policy> {
    Some(Policy::default())
}

fn with_wildcard() -> Option<Policy> {
    Some(Policy {
        is_private: false,
        wildcards: BTreeSet::from(["*.example.com".to_owned()]),
    })
}

fn ninety_days() -> Lifetime {
    Lifetime {
        not_before: NOW,
        not_after: at(90),
    }
}

fn plan(hosts: &[&str]) -> AcmePlan {
    let mut plan = AcmePlan::default();
    plan.set_policy(public(), NOW);
    for host in hosts {
        plan.set_routed(host, true, NOW);
    }
    plan
}

const ORDER: Step = Step::Order { renews: false };
const RENEW: Step = Step::Order { renews: true };

fn due(plan: &AcmePlan, now: Timestamp) -> Option<(String, Step)> {
    let found = plan.due(now, &BTreeSet::new());
    found.map(|(name, step)| (name.to_owned(), step))
}

#[test]
fn a_host_that_is_routed_gets_one_and_it_is_renewed_at_two_thirds_of_its_life() {
    let mut plan = plan(&["a.example.com", "hello.localhost"]);
    assert_eq!(due(&plan, NOW), Some(("a.example.com".to_owned(), ORDER)));
    let busy = BTreeSet::from(["a.example.com".to_owned()]);
    assert_eq!(plan.due(NOW, &busy), None);
    assert_eq!(plan.next_at(&busy), None);

    plan.set_certificate("a.example.com", Some(ninety_days()), NOW);
    // At once it is asked when to renew it.
    assert_eq!(
        due(&plan, NOW),
        Some(("a.example.com".to_owned(), Step::AskRenewal))
    );
    plan.set_asks_at("a.example.com", None, NOW);
    assert_eq!(due(&plan, at(59)), None);
    assert_eq!(due(&plan, at(60)).unwrap().1, RENEW);
    assert_eq!(plan.next_at(&BTreeSet::new()), Some(at(60)));
    assert_eq!(
        plan.counts(NOW),
        Counts {
            wanted: 1,
            missing: 0,
            failing: 0
        }
    );
}

#[test]
fn the_authority_says_when_to_renew_and_never_too_late() {
    let mut plan = plan(&["a.example.com"]);
    plan.set_certificate("a.example.com", Some(ninety_days()), NOW);
    plan.set_asks_at("a.example.com", Some(at(1)), NOW);
    let suggested = |of: Timestamp, when: Timestamp| AcmeRecord {
        renewal: Some(SuggestedRenewal { of, at: when }),
        ..AcmeRecord::default()
    };
    plan.set_record("a.example.com", Some(suggested(at(90), at(3))), NOW);
    assert_eq!(due(&plan, at(2)).unwrap().1, Step::AskRenewal);
    plan.set_asks_at("a.example.com", Some(at(4)), NOW);
    assert_eq!(plan.due_of("a.example.com"), Some((at(3), RENEW)));
    // What was said of another certificate is nothing.
    plan.set_record("a.example.com", Some(suggested(at(80), at(3))), NOW);
    plan.set_asks_at("a.example.com", None, NOW);
    assert_eq!(plan.due_of("a.example.com"), Some((at(60), RENEW)));
    // A window behind its end.
    plan.set_record("a.example.com", Some(suggested(at(90), at(400))), NOW);
    assert_eq!(plan.due_of("a.example.com"), Some((at(81), RENEW)));
}

#[test]
fn a_failure_waits_and_an_order_under_way_does_not() {
    let mut plan = plan(&["a.example.com"]);
    let mut record = AcmeRecord {
        failures: 2,
        not_before: at(1),
        failure: Some(AcmeFailure {
            at: NOW,
            message: "no".to_owned(),
        }),
        ..AcmeRecord::default()
    };
    plan.set_record("a.example.com", Some(record.clone()), NOW);
    assert_eq!(due(&plan, NOW), None);
    assert_eq!(due(&plan, at(1)).unwrap().1, ORDER);
    assert_eq!(plan.failing().count(), 1);
    assert_eq!(
        plan.counts(NOW),
        Counts {
            wanted: 1,
            missing: 1,
            failing: 1
        }
    );
    record.order = Some(OrderUnderWay {
        url: "https://ca/order/1".to_owned(),
        directory: "https://ca/dir".to_owned(),
        began_at: NOW,
    });
    plan.set_record("a.example.com", Some(record), NOW);
    assert_eq!(due(&plan, NOW).unwrap().1, ORDER);
}

#[test]
fn an_operators_certificate_wins_until_it_ends() {
    let mut plan = plan(&["a.example.com", "b.a.example.com"]);
    plan.set_certificate("a.example.com", Some(ninety_days()), NOW);
    let patterns = ["*.example.com".to_owned()];
    plan.set_operators("wild", Some((&patterns, at(10))), NOW);
    assert_eq!(plan.due_of("a.example.com").unwrap().1, Step::Supersede);
    // Not for a host two labels below.
    assert_eq!(plan.due_of("b.a.example.com"), Some((AT_ONCE, ORDER)));
    // Edges have it no more, and again when the operator's has ended or is gone.
    plan.set_superseded("a.example.com", true, NOW);
    assert_eq!(plan.due_of("a.example.com"), Some((at(10), Step::Restore)));
    plan.set_operators("wild", None, NOW);
    assert_eq!(
        plan.due_of("a.example.com"),
        Some((BEFORE_ORDERS, Step::Restore))
    );
    plan.set_superseded("a.example.com", false, NOW);
    assert_eq!(plan.due_of("a.example.com").unwrap().1, Step::AskRenewal);
    // It is kept until it ends.
    plan.set_operators("wild", Some((&patterns, at(100))), NOW);
    plan.set_superseded("a.example.com", true, NOW);
    assert_eq!(plan.due_of("a.example.com"), Some((at(90), Step::Lapse)));
    plan.set_operators("wild", Some((&patterns, at(10))), NOW);
    plan.set_certificate("a.example.com", None, NOW);
    assert!(!plan.is_wanted("a.example.com", NOW));
    // When the operator's has ended, and another was not added, there is to be one.
    assert_eq!(plan.due_of("a.example.com"), Some((at(10), ORDER)));
    let life = Lifetime {
        not_before: at(10),
        not_after: at(100),
    };
    plan.set_certificate("a.example.com", Some(life), at(10));
    assert_eq!(plan.due_of("a.example.com").unwrap().1, Step::AskRenewal);
    plan.set_operators("wild", None, at(11));
    assert_ne!(plan.due_of("a.example.com").unwrap().1, Step::Supersede);
    // Of two, the one that ends last counts; of the same name the other takes its place.
    plan.set_operators("one", Some((&["a.example.com".to_owned()], at(20))), at(11));
    plan.set_operators("two", Some((&["a.example.com".to_owned()], at(30))), at(11));
    plan.set_certificate("a.example.com", None, at(11));
    assert_eq!(plan.due_of("a.example.com"), Some((at(30), ORDER)));
    plan.set_operators("two", Some((&["c.example.com".to_owned()], at(30))), at(11));
    assert_eq!(plan.due_of("a.example.com"), Some((at(20), ORDER)));
}

#[test]
fn one_whose_host_is_routed_no_longer_lapses_and_what_is_remembered_is_kept_until_a_try_would_be_due()
 {
    let mut plan = plan(&["a.example.com", "b.example.com"]);
    plan.set_certificate("a.example.com", Some(ninety_days()), NOW);
    plan.set_routed("a.example.com", false, NOW);
    assert_eq!(plan.due_of("a.example.com"), Some((at(90), Step::Lapse)));
    // It is there when the route is back.
    plan.set_routed("a.example.com", true, at(5));
    assert_eq!(plan.due_of("a.example.com").unwrap().1, Step::AskRenewal);
    plan.set_routed("a.example.com", false, NOW);
    plan.set_certificate("a.example.com", None, at(90));
    assert_eq!(plan.due_of("a.example.com"), None);
    assert!(plan.entries.len() == 1 && !plan.by_parent["example.com"].contains("a.example.com"));

    let failed = AcmeRecord {
        failures: 1,
        not_before: at(1),
        ..AcmeRecord::default()
    };
    plan.set_record("b.example.com", Some(failed), NOW);
    plan.set_routed("b.example.com", false, NOW);
    assert_eq!(
        plan.due_of("b.example.com"),
        Some((at(1), Step::DeleteRecord))
    );
    plan.set_record("b.example.com", None, at(1));
    assert!(plan.entries.is_empty() && plan.queue.is_empty() && plan.by_parent.is_empty());
}

#[test]
fn a_wildcard_of_the_settings_stands_for_the_hosts_that_fit_it() {
    let mut plan = plan(&["a.example.com", "example.com"]);
    plan.set_certificate("a.example.com", Some(ninety_days()), NOW);
    plan.set_policy(with_wildcard(), NOW);
    assert_eq!(plan.due_of("*.example.com"), Some((AT_ONCE, ORDER)));
    assert_eq!(plan.due_of("example.com"), Some((AT_ONCE, ORDER)));
    assert_eq!(plan.due_of("a.example.com"), Some((at(90), Step::Lapse)));
    plan.set_policy(public(), NOW);
    assert_eq!(plan.due_of("*.example.com"), None);
    assert_eq!(plan.due_of("a.example.com").unwrap().1, Step::AskRenewal);
    // Off: what there is lapses, and nothing is ordered.
    plan.set_policy(None, NOW);
    assert_eq!(plan.due_of("example.com"), None);
    assert_eq!(plan.due_of("a.example.com"), Some((at(90), Step::Lapse)));
    assert_eq!(plan.counts(NOW).wanted, 0);
}

#[test]
fn a_private_authority_knows_private_names() {
    let mut plan = plan(&["shop.internal"]);
    assert_eq!(plan.due_of("shop.internal"), None);
    let private = Policy {
        is_private: true,
        ..Policy::default()
    };
    plan.set_policy(Some(private), NOW);
    assert_eq!(plan.due_of("shop.internal"), Some((AT_ONCE, ORDER)));
}

#[test]
fn a_record_is_read_back_and_one_of_before_a_field_too() {
    let record = AcmeRecord {
        failures: 3,
        not_before: NOW,
        failure: Some(AcmeFailure {
            at: NOW,
            message: "no".to_owned(),
        }),
        order: Some(OrderUnderWay {
            url: "u".to_owned(),
            directory: "d".to_owned(),
            began_at: NOW,
        }),
        renewal: Some(SuggestedRenewal {
            of: at(90),
            at: at(60),
        }),
    };
    let json = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<AcmeRecord>(&json).unwrap(), record);
    assert_eq!(
        serde_json::from_str::<AcmeRecord>(r#"{"more": 1}"#).unwrap(),
        AcmeRecord::default()
    );
}

/// A change of what the plan knows.
#[derive(Debug, Clone)]
enum Change {
    Policy(u8),
    Routed(usize, bool),
    Certificate(usize, Option<(u64, u64)>),
    Operators(usize, Option<(usize, u64)>),
    Record(usize, Option<(u32, u64, bool)>),
    Superseded(usize, bool),
    AsksAt(usize, Option<u64>),
}

const NAMES: [&str; 6] = [
    "a.example.com",
    "b.example.com",
    "example.com",
    "c.a.example.com",
    "x.internal",
    "*.example.com",
];

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let name = 0..NAMES.len();
    let days = 0u64..40;
    let one = prop_oneof![
        (0u8..4).prop_map(Change::Policy),
        (name.clone(), any::<bool>()).prop_map(|(name, is)| Change::Routed(name, is)),
        (name.clone(), prop::option::of((0u64..20, 1u64..40)))
            .prop_map(|(name, life)| Change::Certificate(name, life)),
        (0usize..3, prop::option::of((name.clone(), days.clone())))
            .prop_map(|(of, what)| Change::Operators(of, what)),
        (
            name.clone(),
            prop::option::of((0u32..4, days.clone(), any::<bool>()))
        )
            .prop_map(|(name, record)| Change::Record(name, record)),
        (name.clone(), any::<bool>()).prop_map(|(name, is)| Change::Superseded(name, is)),
        (name, prop::option::of(days)).prop_map(|(name, at)| Change::AsksAt(name, at)),
    ];
    prop::collection::vec(one, 0..40)
}

fn carry_out(plan: &mut AcmePlan, change: &Change, now: Timestamp) {
    match change.clone() {
        Change::Policy(0) => plan.set_policy(None, now),
        Change::Policy(1) => plan.set_policy(with_wildcard(), now),
        Change::Policy(2) => plan.set_policy(
            Some(Policy {
                is_private: true,
                ..Policy::default()
            }),
            now,
        ),
        Change::Policy(_) => plan.set_policy(public(), now),
        Change::Routed(name, is) => plan.set_routed(NAMES[name], is, now),
        Change::Certificate(name, life) => {
            let life = life.map(|(from, days)| Lifetime {
                not_before: at(from),
                not_after: at(from + days),
            });
            plan.set_certificate(NAMES[name], life, now);
        }
        Change::Operators(of, what) => {
            let patterns = what.map(|(name, _)| [NAMES[name].to_owned()]);
            let given = patterns.as_ref().zip(what);
            let given = given.map(|(patterns, (_, days))| (&patterns[..], at(days)));
            plan.set_operators(&format!("o{of}"), given, now);
        }
        Change::Record(name, record) => {
            let record = record.map(|(failures, days, is_under_way)| AcmeRecord {
                failures,
                not_before: at(days),
                order: is_under_way.then(|| OrderUnderWay {
                    url: String::new(),
                    directory: String::new(),
                    began_at: NOW,
                }),
                ..AcmeRecord::default()
            });
            plan.set_record(NAMES[name], record, now);
        }
        Change::Superseded(name, is) => plan.set_superseded(NAMES[name], is, now),
        Change::AsksAt(name, days) => plan.set_asks_at(NAMES[name], days.map(at), now),
    }
}

proptest! {
    /// What is kept up to date change by change is what one would say who looks at everything now, and obeys the rules.
    #[test]
    fn the_queue_is_what_all_that_is_known_says(changes in changes(), day in 0u64..40) {
        let mut plan = AcmePlan::default();
        let now = at(day);
        for change in &changes {
            carry_out(&mut plan, change, now);
        }
        let mut queue = BTreeSet::new();
        for (name, entry) in &plan.entries {
            let step = plan.next_step(name, entry, now);
            prop_assert_eq!(entry.due, step, "{}", name);
            queue.extend(step.map(|(at, _)| (at, name.clone())));
            let covered = plan.covered_until(name).is_some_and(|end| end > now);
            let record = entry.record.clone().unwrap_or_default();
            match step {
                Some((when, Step::Order { renews })) => {
                    prop_assert!(plan.wants(name), "{name} is ordered and not wanted");
                    prop_assert_eq!(renews, entry.lifetime.is_some());
                    let waits = record.order.is_none() && when < record.not_before;
                    prop_assert!(!waits, "{name} does not wait");
                    prop_assert!(!(covered && when <= now), "{name} is an operator's");
                }
                Some((_, Step::Supersede)) => {
                    prop_assert!(covered && entry.lifetime.is_some() && !entry.is_superseded);
                }
                Some((when, Step::Restore)) => {
                    prop_assert!(entry.lifetime.is_some() && entry.is_superseded);
                    prop_assert!(when > now || !covered);
                }
                Some((when, Step::Lapse)) => {
                    prop_assert!(!plan.wants(name) || (covered && entry.is_superseded));
                    prop_assert_eq!(entry.lifetime.map(|life| life.not_after), Some(when));
                }
                Some((_, Step::DeleteRecord)) => prop_assert!(!plan.wants(name) && entry.lifetime.is_none()),
                Some((_, Step::AskRenewal)) => prop_assert!(entry.lifetime.is_some() && !covered),
                None => prop_assert!(!plan.wants(name) && entry.lifetime.is_none()),
            }
        }
        prop_assert_eq!(&plan.queue, &queue);
        let parents: usize = plan.by_parent.values().map(BTreeSet::len).sum();
        let with_parent = plan.entries.keys().filter(|name| name.contains('.')).count();
        prop_assert_eq!(parents, with_parent);
    }
}
