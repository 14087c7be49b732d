//! Resolves `user[:group]` by the image's own `/etc/passwd` and `/etc/group`.
//!
//! The rule is the OCI image spec's (config.md, `User`): without a group, the user's default group
//! and the groups that list the user by name; with a group, that one and no other. A number that is in
//! no file stands for itself, with group 0. Pure: the files come as bytes, and need not exist.

/// The user that the app runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
    /// Every group, the group id itself included: a process could otherwise drop that group, and so escape a
    /// permission that denies it access.
    pub(crate) groups: Vec<u32>,
    /// Home directory, for `HOME`.
    pub(crate) home: String,
}

/// Why a user cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    /// `/etc/passwd` has no such name.
    #[error("the image's /etc/passwd has no user `{0}`")]
    NoUser(String),
    /// `/etc/group` has no such name.
    #[error("the image's /etc/group has no group `{0}`")]
    NoGroup(String),
}

/// One line of `/etc/passwd`: name, id, group id, home.
type Account<'a> = (&'a [u8], u32, u32, &'a [u8]);

/// Resolves `user[:group]`; empty is root.
///
/// # Errors
/// A name that the files do not have.
pub(crate) fn resolve(text: &str, passwd: &[u8], group: &[u8]) -> Result<User, UserError> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, group),
        None => (text, ""),
    };
    let user = if user.is_empty() { "0" } else { user };

    let account = accounts(passwd)
        .find(|(name, uid, ..)| *name == user.as_bytes() || Some(*uid) == number(user.as_bytes()));
    let (name, uid, default_gid, home) = match (account, number(user.as_bytes())) {
        (Some((name, uid, gid, home)), _) => (Some(name), uid, gid, home),
        (None, Some(uid)) => (None, uid, 0, b"/".as_slice()),
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };

    let (gid, mut groups) = if wanted_group.is_empty() {
        let listed = group_lines(group)
            .filter(|(_, _, members)| {
                members
                    .split(|byte| *byte == b',')
                    .any(|member| !member.is_empty() && Some(trim(member)) == name)
            })
            .map(|(_, gid, _)| gid)
            .collect();
        (default_gid, listed)
    } else {
        let wanted = wanted_group.as_bytes();
        let gid = group_lines(group)
            .find(|(name, gid, _)| *name == wanted || Some(*gid) == number(wanted))
            .map(|(_, gid, _)| gid)
            .or_else(|| number(wanted))
            .ok_or_else(|| UserError::NoGroup(wanted_group.to_owned()))?;
        (gid, Vec::new())
    };
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();

    let home = if home.is_empty() { b"/" } else { home };
    Ok(User {
        uid,
        gid,
        groups,
        home: String::from_utf8_lossy(home).into_owned(),
    })
}

/// Lines that are not of the form are skipped, as libc does.
fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    lines(passwd).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next()?;
        let uid = number(fields.nth(1)?)?;
        let gid = number(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some((name, uid, gid, home))
    })
}

/// Name, id, members.
fn group_lines(group: &[u8]) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
    lines(group).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next()?;
        let gid = number(fields.nth(1)?)?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n')
        .map(trim)
        .filter(|line| !line.is_empty() && line[0] != b'#')
}

fn trim(bytes: &[u8]) -> &[u8] {
    bytes.trim_ascii()
}

fn number(bytes: &[u8]) -> Option<u32> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::resolve;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        broken line\n\
        shop:x:1000:100:Shop:/home/shop:/bin/sh\r\n\
        bare:x:7:7\n\
        \xff\xfe:x:8:8::/\xff:\n\
        1234:x:55:56::/named-by-digits:\n";
    const GROUP: &[u8] = b"root:x:0:\nusers:x:100:\nvideo:x:44:root,shop\naudio:x:29:shop\n\
        staff:x:50:other\nempty:x:60:,\n";

    #[allow(clippy::needless_pass_by_value, reason = "expect! makes a value")]
    fn check(text: &str, expected: Expect) {
        let line = match resolve(text, PASSWD, GROUP) {
            Ok(user) => format!("{}:{} {:?} {}", user.uid, user.gid, user.groups, user.home),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&line);
    }

    #[test]
    fn a_user_is_resolved_by_name_or_number() {
        check("", expect!["0:0 [0, 44] /root"]);
        check("shop", expect!["1000:100 [29, 44, 100] /home/shop"]);
        check("1000", expect!["1000:100 [29, 44, 100] /home/shop"]);
        check("4242", expect!["4242:0 [0] /"]);
        check("bare", expect!["7:7 [7] /"]);
        check("1234", expect!["55:56 [56] /named-by-digits"]);
        check(
            "nobody-here",
            expect!["the image's /etc/passwd has no user `nobody-here`"],
        );
        check(
            "4294967296",
            expect!["the image's /etc/passwd has no user `4294967296`"],
        );
    }

    #[test]
    fn a_named_group_replaces_all_groups() {
        check("shop:staff", expect!["1000:50 [50] /home/shop"]);
        check("shop:50", expect!["1000:50 [50] /home/shop"]);
        check("shop:999", expect!["1000:999 [999] /home/shop"]);
        check("4242:4343", expect!["4242:4343 [4343] /"]);
        check(":staff", expect!["0:50 [50] /root"]);
        check("shop:", expect!["1000:100 [29, 44, 100] /home/shop"]);
        check(
            "shop:nope",
            expect!["the image's /etc/group has no group `nope`"],
        );
    }

    #[test]
    fn an_image_without_passwd_and_group_has_numbers_only() {
        let user = resolve("", b"", b"").map(|user| (user.uid, user.gid, user.home));
        assert_eq!(user, Ok((0, 0, "/".to_owned())));
        assert!(resolve("shop", b"", b"").is_err());
    }
}
