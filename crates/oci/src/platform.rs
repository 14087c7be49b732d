//! Platforms, and how well an image for one platform suits another.

use std::fmt;
use std::str::FromStr;

/// Linux on an architecture, perhaps on a variant of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    /// As the OCI image spec (and Go) names it: `amd64`, `arm64`, `arm`.
    pub architecture: String,
    /// `v8`, `v7`; `None`: the architecture's usual variant.
    pub variant: Option<String>,
}

/// A text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform: write `linux/amd64` or `linux/arm/v7`; only linux is supported")]
pub struct PlatformError(pub String);

impl Platform {
    /// The usual variant of this architecture.
    pub fn of(architecture: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// The machine this program runs on.
    pub fn host() -> Self {
        Self::of(match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        })
    }

    /// A platform as a document names it, under the OCI's name: `x86_64` is amd64 and `aarch64` arm64, as containerd
    /// has them. Empty variants are absent.
    pub(crate) fn named(architecture: &str, variant: Option<&str>) -> Self {
        let architecture = architecture.to_ascii_lowercase();
        let variant = variant.filter(|variant| !variant.is_empty());
        let (architecture, variant) = match architecture.as_str() {
            "x86_64" | "x86-64" => ("amd64", variant),
            "aarch64" => ("arm64", variant),
            "armhf" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            "i386" => ("386", None),
            other => (other, variant),
        };
        Self {
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_ascii_lowercase),
        }
    }

    /// The key in [`crate::Resolved::by_arch`]: the architecture, with the variant where there is one (`arm/v7`).
    pub fn key(&self) -> String {
        match &self.variant {
            Some(variant) => format!("{}/{variant}", self.architecture),
            None => self.architecture.clone(),
        }
    }

    /// How well an image for the platform `offered` suits this platform; `None` if it does not run here. The highest
    /// rank suits best. A platform runs its own variant and older ones; an absent variant is the architecture's
    /// usual one (amd64/v1, arm64/v8, arm/v7). Variants that are not numbers must be equal.
    pub(crate) fn rank(&self, offered: &Platform) -> Option<u32> {
        if offered.architecture != self.architecture {
            return None;
        }
        let variant = |platform: &Platform| platform.variant.clone().filter(|v| !v.is_empty());
        let (wanted, offered) = (variant(self), variant(offered));
        let usual = match self.architecture.as_str() {
            "amd64" => "v1",
            "arm64" => "v8",
            "arm" => "v7",
            _ => {
                return match (wanted, offered) {
                    (wanted, offered) if wanted == offered => Some(2),
                    (Some(_), None) => Some(1),
                    _ => None,
                };
            }
        };
        let wanted = variant_number(wanted.as_deref().unwrap_or(usual))?;
        let offered = variant_number(offered.as_deref().unwrap_or(usual))?;
        (offered <= wanted).then_some(offered)
    }
}

/// `v8` -> 8000, `v8.2` -> 8002.
fn variant_number(variant: &str) -> Option<u32> {
    let number = variant.strip_prefix('v').unwrap_or(variant);
    let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
    let parse = |part: &str| part.parse::<u16>().ok().filter(|n| *n < 1000);
    Some(u32::from(parse(major)?) * 1000 + u32::from(parse(minor)?))
}

impl FromStr for Platform {
    type Err = PlatformError;
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let error = || PlatformError(text.to_owned());
        let word = |part: &str| {
            !part.is_empty()
                && part.len() <= 32
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'_')
        };
        let mut parts = text.split('/');
        if parts.next() != Some("linux") {
            return Err(error());
        }
        let architecture = parts.next().filter(|p| word(p)).ok_or_else(error)?;
        let variant = parts.next();
        if parts.next().is_some() || variant.is_some_and(|v| !word(v)) {
            return Err(error());
        }
        Ok(Self {
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.key())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_platform_runs_its_own_variant_and_older_ones() {
        let check = |wanted: &str, offered: (&str, &str), rank: Option<u32>| {
            let wanted: Platform = wanted.parse().unwrap();
            let offered = Platform {
                architecture: offered.0.to_owned(),
                variant: Some(offered.1.to_owned()),
            };
            assert_eq!(wanted.rank(&offered), rank, "{wanted} {offered}");
        };
        check("linux/amd64", ("amd64", ""), Some(1000));
        check("linux/amd64", ("amd64", "v1"), Some(1000));
        check("linux/amd64", ("amd64", "v3"), None);
        check("linux/amd64/v3", ("amd64", "v2"), Some(2000));
        check("linux/amd64", ("arm64", ""), None);
        check("linux/arm64", ("arm64", ""), Some(8000));
        check("linux/arm64", ("arm64", "v8"), Some(8000));
        check("linux/arm64", ("arm64", "v8.1"), None);
        check("linux/arm64/v8.2", ("arm64", "v8.1"), Some(8001));
        check("linux/arm64", ("arm64", "v9"), None);
        check("linux/arm/v6", ("arm", "v7"), None);
        check("linux/arm/v7", ("arm", "v6"), Some(6000));
        check("linux/arm/v7", ("arm", ""), Some(7000));
        check("linux/arm64", ("arm64", "x"), None);
        check("linux/riscv64", ("riscv64", ""), Some(2));
        check("linux/mips/a", ("mips", "b"), None);
    }

    #[test]
    fn platforms_are_written_as_docker_writes_them() {
        for good in ["linux/amd64", "linux/arm/v7", "linux/mips64le"] {
            assert_eq!(good.parse::<Platform>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "amd64",
            "windows/amd64",
            "linux/",
            "linux/arm/",
            "linux/arm/v7/x",
            "linux/A",
        ] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
