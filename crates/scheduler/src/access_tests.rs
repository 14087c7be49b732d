//! Whoever may less than before has nothing left that opens more.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use api::user::Grants;
use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp(1_000);

fn org(name: &str) -> OrgName {
    name.parse().unwrap()
}

fn user(name: &str) -> UserName {
    name.parse().unwrap()
}

fn token_of(name: &str) -> UserToken {
    UserToken {
        user: user(name),
        org: None,
        role: None,
        created_at: NOW,
        expires_at: None,
        by: None,
        note: String::new(),
    }
}

fn grant(name: &str, of: Option<&str>, role: Option<Role>) -> AccessCommand {
    AccessCommand::Grant {
        user: user(name),
        org: of.map(org),
        role,
        now: NOW,
    }
}

fn access(commands: &[AccessCommand]) -> Access {
    let mut access = Access::default();
    for command in commands {
        access.apply(command).unwrap();
    }
    access
}

fn create(name: &str) -> AccessCommand {
    AccessCommand::CreateOrg {
        name: org(name),
        now: NOW,
    }
}

fn add(hash: u8, token: UserToken) -> AccessCommand {
    AccessCommand::AddToken {
        hash: [hash; 32],
        token,
        now: NOW,
    }
}

#[test]
fn a_token_opens_what_both_it_and_its_user_may() {
    let mut narrow = token_of("ann");
    narrow.org = Some(org("shop"));
    narrow.role = Some(Role::Deployer);
    let mut expired = token_of("ann");
    expired.expires_at = Some(NOW);
    let mut access = access(&[
        create("shop"),
        create("bank"),
        grant("ann", Some("shop"), Some(Role::Admin)),
        grant("ann", Some("bank"), Some(Role::Viewer)),
        add(1, token_of("ann")),
        add(2, narrow),
    ]);
    let grants = |access: &Access, hash: u8| access.caller(&[hash; 32], NOW).map(|c| c.grants);
    let wide = grants(&access, 1).unwrap();
    assert_eq!(wide.role_in(&org("shop")), Some(Role::Admin));
    assert_eq!(wide.role_in(&org("bank")), Some(Role::Viewer));
    let narrow = grants(&access, 2).unwrap();
    assert_eq!(narrow.role_in(&org("shop")), Some(Role::Deployer));
    assert_eq!(narrow.role_in(&org("bank")), None);
    // The user may less: so does the token.
    access
        .apply(&grant("ann", Some("shop"), Some(Role::Viewer)))
        .unwrap();
    let narrow = grants(&access, 2).unwrap();
    assert_eq!(narrow.role_in(&org("shop")), Some(Role::Viewer));
    assert_eq!(grants(&access, 3), Err(NotLetIn::Unknown));
    access.apply(&add(4, expired)).unwrap();
    assert_eq!(grants(&access, 4), Err(NotLetIn::Expired { at: NOW }));
    // The last role goes, and the user's tokens with it.
    access.apply(&grant("ann", Some("shop"), None)).unwrap();
    access.apply(&grant("ann", Some("bank"), None)).unwrap();
    assert_eq!(grants(&access, 1), Err(NotLetIn::Unknown));
    assert!(access.tokens().is_empty());
}

#[test]
fn an_org_of_the_name_of_a_removed_one_is_opened_by_nothing_of_before() {
    let mut of_org = token_of("root");
    of_org.org = Some(org("shop"));
    let mut access = access(&[
        create("shop"),
        grant("root", None, Some(Role::Admin)),
        grant("ann", Some("shop"), Some(Role::Admin)),
        add(1, of_org),
        add(2, token_of("ann")),
        AccessCommand::RemoveOrg { name: org("shop") },
        create("shop"),
    ]);
    for hash in [1, 2] {
        assert_eq!(access.caller(&[hash; 32], NOW), Err(NotLetIn::Unknown));
    }
    let last = access.apply(&AccessCommand::RemoveUser { user: user("root") });
    assert_eq!(last, Err(AccessRefused::LastAdmin(user("root"))));
    let owned = AccessCommand::SetOwner {
        app: "web".parse().unwrap(),
        org: org("shop"),
    };
    access.apply(&owned).unwrap();
    let removed = access.apply(&AccessCommand::RemoveOrg { name: org("shop") });
    assert!(matches!(removed, Err(AccessRefused::OrgHasApps { .. })));
}

#[test]
fn a_user_has_no_more_tokens_than_there_may_be_and_expired_ones_do_not_count() {
    let mut access = access(&[grant("ci", None, Some(Role::Viewer))]);
    let most = u8::try_from(MAX_TOKENS_OF_A_USER).unwrap();
    for hash in 0..most {
        let mut token = token_of("ci");
        token.expires_at = (hash == 0).then_some(Timestamp(NOW.0 + 1));
        access.apply(&add(hash, token)).unwrap();
    }
    let one_more = access.apply(&add(200, token_of("ci")));
    assert_eq!(one_more, Err(AccessRefused::TooManyTokens(user("ci"))));
    let later = AccessCommand::AddToken {
        hash: [200; 32],
        token: token_of("ci"),
        now: Timestamp(NOW.0 + 1),
    };
    access.apply(&later).unwrap();
    assert!(!access.tokens().contains_key(&[0; 32]));
}

#[test]
fn an_org_has_no_more_apps_and_users_than_it_may() {
    let mut access = access(&[create("shop"), create("bank")]);
    let owned = |app: usize, of: &str| AccessCommand::SetOwner {
        app: format!("app-{app}").parse().unwrap(),
        org: org(of),
    };
    for number in 0..MAX_APPS_OF_AN_ORG {
        access.apply(&owned(number, "shop")).unwrap();
    }
    let one_more = owned(MAX_APPS_OF_AN_ORG, "shop");
    let full = Err(AccessRefused::TooManyApps(org("shop")));
    assert_eq!(access.apply(&one_more), full);
    // It keeps those that it has; another org has its own number, and what leaves makes room.
    access.apply(&owned(0, "shop")).unwrap();
    access.apply(&owned(MAX_APPS_OF_AN_ORG, "bank")).unwrap();
    assert_eq!(access.apply(&one_more), full);
    access.apply(&owned(0, "bank")).unwrap();
    access.apply(&one_more).unwrap();

    let viewer = |number: usize, of: &str| {
        let name = format!("user-{number}");
        grant(&name, Some(of), Some(Role::Viewer))
    };
    for number in 0..MAX_USERS_OF_AN_ORG {
        access.apply(&viewer(number, "shop")).unwrap();
    }
    let one_more = viewer(MAX_USERS_OF_AN_ORG, "shop");
    let full = Err(AccessRefused::TooManyUsersOfOrg(org("shop")));
    assert_eq!(access.apply(&one_more), full);
    assert!(!access.users().contains_key(&user("user-2000")));
    access
        .apply(&grant("user-0", Some("shop"), Some(Role::Admin)))
        .unwrap();
    access.apply(&viewer(MAX_USERS_OF_AN_ORG, "bank")).unwrap();
    access.apply(&grant("user-0", Some("shop"), None)).unwrap();
    access.apply(&one_more).unwrap();
}

fn a_command() -> impl Strategy<Value = AccessCommand> {
    let orgs = prop::sample::select(vec!["a", "b", "default"]);
    let users = prop::sample::select(vec!["x", "y", "z"]);
    let roles = prop::option::of(prop::sample::select(vec![
        Role::Viewer,
        Role::Deployer,
        Role::Admin,
    ]));
    let apps = prop::sample::select(vec!["p", "q"]);
    prop_oneof![
        orgs.clone().prop_map(create),
        orgs.clone()
            .prop_map(|name| AccessCommand::RemoveOrg { name: org(name) }),
        (apps.clone(), orgs.clone()).prop_map(|(app, name)| AccessCommand::SetOwner {
            app: app.parse().unwrap(),
            org: org(name)
        }),
        apps.prop_map(|app| AccessCommand::RemoveApp {
            app: app.parse().unwrap()
        }),
        (users.clone(), prop::option::of(orgs.clone()), roles.clone())
            .prop_map(|(name, of, role)| grant(name, of, role)),
        users
            .clone()
            .prop_map(|name| AccessCommand::RemoveUser { user: user(name) }),
        (0_u8..6, users, prop::option::of(orgs), roles).prop_map(|(hash, name, of, role)| {
            let mut token = token_of(name);
            (token.org, token.role) = (of.map(org), role);
            add(hash, token)
        }),
        (0_u8..6).prop_map(|hash| AccessCommand::DeleteToken { hash: [hash; 32] }),
    ]
}

proptest! {
    /// The changes are what a store needs to have the same, nothing is left of what was removed, and an admin who is there stays.
    #[test]
    fn whatever_is_done_nothing_refers_to_what_is_gone(
        commands in prop::collection::vec(a_command(), 0..60)
    ) {
        let mut access = Access::default();
        let mut stored = AccessChanges::default();
        let mut had_admin = false;
        for command in &commands {
            if let Ok(changes) = access.apply(command) {
                stored.then(changes);
            }
            let admins = access.users().values();
            let has_admin = admins.filter(|u| u.grants.cluster == Some(Role::Admin)).count() > 0;
            prop_assert!(has_admin || !had_admin, "{command:?}");
            had_admin = has_admin;
        }
        prop_assert_eq!(&Access::of(&stored), &access);
        let orgs: BTreeSet<_> = access.orgs().keys().cloned().collect();
        for (_, owner) in access.apps() {
            prop_assert!(orgs.contains(owner));
        }
        for (name, record) in access.users() {
            prop_assert!(record.grants != Grants::default());
            for of in record.grants.orgs.keys() {
                prop_assert!(orgs.contains(of));
                prop_assert!(access.users_of(of).any(|(user, _)| user == name));
            }
        }
        for (hash, token) in access.tokens() {
            prop_assert!(access.users().contains_key(&token.user));
            prop_assert!(token.org.as_ref().is_none_or(|of| orgs.contains(of)));
            prop_assert!(access.tokens_of(&token.user).any(|(of, _)| of == hash));
        }
        for of in &orgs {
            let owned = access.apps().iter().filter(|(_, owner)| *owner == of).count();
            prop_assert_eq!(access.apps_of(of).count(), owned);
        }
    }
}
