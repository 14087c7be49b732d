#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
use expect_test::{Expect, expect};

use super::*;
use crate::config::read_config;
use crate::digest::digest_of;

const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// Writes out the short forms: `A` and `B` are digests, types are named by their end.
fn expand(text: &str) -> String {
    text.replace('\'', "\"")
        .replace("\"A\"", &format!("\"{A}\""))
        .replace("\"B\"", &format!("\"{B}\""))
        .replace("OCI/", "application/vnd.oci.image.")
        .replace("DOCKER/", "application/vnd.docker.")
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "expect![] reads better by value"
)]
fn check(content_type: &str, text: &str, expected: Expect) {
    let text = expand(text);
    let content_type = expand(content_type);
    let content_type = (!content_type.is_empty()).then_some(content_type.as_str());
    let limits = ImageLimits {
        layers: 3,
        layer_bytes: 1000,
        image_bytes: 1500,
        config_bytes: 500,
        ..ImageLimits::default()
    };
    let digest = digest_of(b"x");
    let shown = match read_document(text.as_bytes(), &digest, "host", content_type, &limits) {
        Ok(Document::Image(image)) => format!(
            "image: config {}, layers {:?}",
            image.config.size,
            image
                .layers
                .iter()
                .map(|(layer, kind)| (layer.size, *kind))
                .collect::<Vec<_>>()
        ),
        Ok(Document::Index(entries)) => {
            let entries = entries.iter().map(|entry| {
                let platform = entry.platform.as_ref().and_then(EntryPlatform::linux);
                let platform = platform.map_or("no linux".to_owned(), |p| p.to_string());
                let nested = if entry.is_index { " nested" } else { "" };
                format!("{platform} {}{nested}", entry.descriptor.size)
            });
            format!("index: {}", entries.collect::<Vec<_>>().join(", "))
        }
        Err(error) => {
            let short = format!("sha256:{}…", digest.short());
            error.to_string().replace(&short, "DIGEST")
        }
    };
    expected.assert_eq(&shown.replace(A, "A").replace(B, "B"));
}

const CONFIG: &str = "'config': {'mediaType': 'OCI/config.v1+json', 'digest': 'A', 'size': 5}";

fn manifest(layers: &str) -> String {
    format!("{{'schemaVersion': 2, {CONFIG}, 'layers': [{layers}]}}")
}

fn layer(kind: &str, size: &str) -> String {
    format!("{{'mediaType': '{kind}', 'digest': 'B', 'size': {size}}}")
}

#[test]
fn manifests_of_oci_and_docker_are_read() {
    let oci = [
        layer("OCI/layer.v1.tar", "1"),
        layer("OCI/layer.v1.tar+gzip", "2"),
        layer("OCI/layer.v1.tar+zstd", "3"),
    ]
    .join(",");
    check(
        "OCI/manifest.v1+json",
        &manifest(&oci),
        expect!["image: config 5, layers [(1, None), (2, Gzip), (3, Zstd)]"],
    );
    // A file has no content type, and need not say in itself what it is.
    check(
        "",
        &manifest(&oci),
        expect!["image: config 5, layers [(1, None), (2, Gzip), (3, Zstd)]"],
    );
    check(
        "OCI/manifest.v1+json; charset=utf-8",
        &manifest(&oci),
        expect!["image: config 5, layers [(1, None), (2, Gzip), (3, Zstd)]"],
    );
    check(
        "DOCKER/distribution.manifest.v2+json",
        "{'schemaVersion': 2, 'mediaType': 'DOCKER/distribution.manifest.v2+json',
          'config': {'mediaType': 'DOCKER/container.image.v1+json', 'digest': 'A', 'size': 7},
          'layers': [{'mediaType': 'DOCKER/image.rootfs.diff.tar.gzip', 'digest': 'B', 'size': 9,
                      'urls': ['http://elsewhere/']}], 'unknown': {'deep': []}}",
        expect!["image: config 7, layers [(9, Gzip)]"],
    );
}

/// Static files as a registry, mirrors on S3 or nginx, proxies.
#[test]
fn case_a_manifest_is_known_by_its_content_where_the_content_type_is_general() {
    let one = manifest(&layer("OCI/layer.v1.tar", "1"));
    let index = "{'schemaVersion': 2, 'manifests': []}";
    let named = one.replace(
        "'schemaVersion': 2",
        "'schemaVersion': 2, 'mediaType': 'OCI/manifest.v1+json'",
    );
    for general in [
        "",
        " ",
        "application/json",
        "application/json; charset=utf-8",
        "text/plain",
        "text/html",
        "application/octet-stream",
        "binary/octet-stream",
    ] {
        let image = || expect!["image: config 5, layers [(1, None)]"];
        check(general, &one, image());
        check(general, &named, image());
        check(general, index, expect!["index: "]);
        check(
            general,
            &one.replace("'layers'", "'manifests': [], 'layers'"),
            expect!["the manifest is malformed: it is an image and an index at the same time"],
        );
    }
}

/// Docker before 1.10, and registries of its time.
#[test]
fn case_config_types_of_old_dockers_are_taken() {
    let one = manifest(&layer("DOCKER/image.rootfs.diff.tar.gzip", "1"));
    for kind in [
        "application/octet-stream",
        "application/json",
        "text/html",
        "",
    ] {
        check(
            "OCI/manifest.v1+json",
            &one.replace("OCI/config.v1+json", kind),
            expect!["image: config 5, layers [(1, Gzip)]"],
        );
    }
    check(
        "OCI/manifest.v1+json",
        &manifest(&layer("application/octet-stream", "1"))
            .replace("OCI/config.v1+json", "application/octet-stream"),
        expect!["DIGEST is not a container image but `application/octet-stream`"],
    );
}

/// A mirror that calls docker's documents by OCI's names or the other way round. What is called an index and is an image is refused.
#[test]
fn case_a_content_type_of_the_same_kind_is_as_good_as_the_documents_own() {
    let image = |own: &str| {
        manifest(&layer("OCI/layer.v1.tar", "1")).replace(
            "'schemaVersion': 2",
            &format!("'schemaVersion': 2, 'mediaType': '{own}'"),
        )
    };
    let (oci, docker) = (
        "OCI/manifest.v1+json",
        "DOCKER/distribution.manifest.v2+json",
    );
    for (header, own) in [(oci, docker), (docker, oci), (docker, docker)] {
        check(
            header,
            &image(own),
            expect!["image: config 5, layers [(1, None)]"],
        );
    }
    let index =
        |own: &str| format!("{{'schemaVersion': 2, 'mediaType': '{own}', 'manifests': []}}");
    let (oci, docker) = (
        "OCI/index.v1+json",
        "DOCKER/distribution.manifest.list.v2+json",
    );
    for (header, own) in [(oci, docker), (docker, oci)] {
        check(header, &index(own), expect!["index: "]);
    }
    check(
        docker,
        &image("DOCKER/distribution.manifest.v2+json"),
        expect![
            "host answers with content type `application/vnd.docker.distribution.manifest.list.v2+json`: the document calls itself `application/vnd.docker.distribution.manifest.v2+json`"
        ],
    );
}

#[test]
fn case_layers_that_only_their_vendor_may_distribute_are_taken_from_the_registry() {
    for kind in [
        "OCI/layer.nondistributable.v1.tar+gzip",
        "DOCKER/image.rootfs.foreign.diff.tar.gzip",
    ] {
        check(
            "OCI/manifest.v1+json",
            &manifest(&layer(kind, "1")),
            expect!["image: config 5, layers [(1, Gzip)]"],
        );
    }
}

#[test]
fn layer_types_are_read_with_either_joint() {
    let both = [
        layer("DOCKER/image.rootfs.diff.tar+gzip", "1"),
        layer("OCI/layer.v1.tar.zstd", "2"),
    ];
    check(
        "OCI/manifest.v1+json",
        &manifest(&both.join(",")),
        expect!["image: config 5, layers [(1, Gzip), (2, Zstd)]"],
    );
}

#[test]
fn an_index_keeps_the_entries_that_may_be_images() {
    check(
        "OCI/index.v1+json",
        "{'schemaVersion': 2, 'manifests': [
          {'mediaType': 'OCI/manifest.v1+json', 'digest': 'A', 'size': 1,
           'platform': {'os': 'linux', 'architecture': 'arm', 'variant': 'v7'}},
          {'mediaType': 'OCI/manifest.v1+json', 'digest': 'B', 'size': 2,
           'platform': {'os': 'unknown', 'architecture': 'unknown'}},
          {'mediaType': 'OCI/manifest.v1+json', 'digest': 'B', 'size': 3},
          {'mediaType': 'OCI/manifest.v1+json', 'digest': 'B', 'size': 4, 'artifactType': 'x/signature'},
          {'mediaType': 'application/x-of-the-future', 'digest': 'sha1:00', 'size': 5},
          {'mediaType': 'OCI/index.v1+json', 'digest': 'B', 'size': 6}]}",
        expect!["index: linux/arm/v7 1, no linux 2, no linux 3, no linux 6 nested"],
    );
    check(
        "DOCKER/distribution.manifest.list.v2+json",
        "{'schemaVersion': 2, 'manifests': [{'mediaType': 'DOCKER/distribution.manifest.v2+json',
          'digest': 'A', 'size': 1, 'platform': {'os': 'linux', 'architecture': 'amd64'}}]}",
        expect!["index: linux/amd64 1"],
    );
}

#[test]
fn malformed_manifests_are_refused_with_the_reason() {
    let one = layer("OCI/layer.v1.tar", "1");
    let good = manifest(&one);
    let kind = "OCI/manifest.v1+json";
    check(
        "text/html",
        "<!DOCTYPE html>",
        expect!["host answers with content type `text/html`: it is not a manifest's"],
    );
    check(
        "application/vnd.cncf.helm.config.v1+json",
        &good,
        expect![
            "host answers with content type `application/vnd.cncf.helm.config.v1+json`: it is not a manifest's"
        ],
    );
    check(
        "DOCKER/distribution.manifest.v1+prettyjws",
        &good,
        expect![
            "host answers with content type `application/vnd.docker.distribution.manifest.v1+prettyjws`: docker's schema 1 is not supported; push the image again with a current tool"
        ],
    );
    check(
        "OCI/index.v1+json",
        &good,
        expect!["the index is malformed: it has no `manifests`"],
    );
    check(
        kind,
        &good.replace(
            "'schemaVersion': 2",
            "'schemaVersion': 2, 'mediaType': 'OCI/index.v1+json'",
        ),
        expect![
            "host answers with content type `application/vnd.oci.image.manifest.v1+json`: the document calls itself `application/vnd.oci.image.index.v1+json`"
        ],
    );
    check(
        "",
        &good.replace(
            "'schemaVersion': 2",
            "'schemaVersion': 2, 'mediaType': 'x/y'",
        ),
        expect!["DIGEST is not a container image but `x/y`"],
    );
    check(
        kind,
        &good.replace("'schemaVersion': 2", "'schemaVersion': 1"),
        expect!["the manifest is malformed: its schemaVersion is not 2"],
    );
    check(
        kind,
        &good.replace("'layers'", "'manifests': [], 'layers'"),
        expect!["the manifest is malformed: it is an image and an index at the same time"],
    );
    check(
        "",
        &good.replace("'layers'", "'manifests': [], 'layers'"),
        expect!["the manifest is malformed: it is an image and an index at the same time"],
    );
    check(
        kind,
        "{'schemaVersion': 2, 'layers': []}",
        expect!["the manifest is malformed: it has no `config`"],
    );
    check(
        kind,
        &manifest(""),
        expect!["the manifest is malformed: it has zero layers"],
    );
    check(
        kind,
        &good.replace("'B'", "'sha256:../../x'"),
        expect!["the manifest is malformed: `sha256:../../x` is not a sha256 digest"],
    );
    check(
        kind,
        &good.replace("'size': 1", "'size': -1"),
        expect![
            "the manifest is malformed: invalid value: integer `-1`, expected u64 at line 1 column 348"
        ],
    );
    check(
        kind,
        &good.replace("'size': 1", "'size': 1, 'size': 2"),
        expect!["the manifest is malformed: duplicate field `size` at line 1 column 355"],
    );
    check(
        kind,
        &manifest(&[one.as_str(); 4].join(",")),
        expect!["the image is over the limit: 4, at most 3 layers"],
    );
    check(
        kind,
        &manifest(&layer("OCI/layer.v1.tar", "1001")),
        expect!["layer B is over the limit: 1001, at most 1000 bytes"],
    );
    check(
        kind,
        &manifest(&[layer("OCI/layer.v1.tar", "900").as_str(); 2].join(",")),
        expect!["the image is over the limit: 1800, at most 1500 bytes"],
    );
    check(
        kind,
        &good.replace("'size': 5", "'size': 501"),
        expect!["the image config is over the limit: 501, at most 500 bytes"],
    );
    check(
        kind,
        &manifest(&layer("OCI/layer.v1.tar+gzip+encrypted", "1")),
        expect![
            "layer B has the unknown type `application/vnd.oci.image.layer.v1.tar+gzip+encrypted`"
        ],
    );
    check(
        kind,
        &manifest(&layer("application/vnd.in-toto+json", "1")),
        expect!["DIGEST is not a container image but `application/vnd.in-toto+json`"],
    );
    check(
        kind,
        &good.replace(
            "OCI/config.v1+json",
            "application/vnd.cncf.helm.config.v1+json",
        ),
        expect!["DIGEST is not a container image but `application/vnd.cncf.helm.config.v1+json`"],
    );
    check(
        kind,
        &good
            .replace("OCI/config.v1+json", "application/vnd.oci.empty.v1+json")
            .replace("'layers'", "'artifactType': 'x/sbom', 'layers'"),
        expect!["DIGEST is not a container image but `x/sbom`"],
    );
    check(
        kind,
        "not\u{1b}[31m json",
        expect!["the manifest is malformed: expected ident at line 1 column 2"],
    );
    check(
        kind,
        &"[".repeat(100_000),
        expect![
            "the manifest is malformed: invalid type: sequence, expected u64 at line 1 column 1"
        ],
    );
    let many = "{'mediaType': 'OCI/manifest.v1+json', 'digest': 'A', 'size': 1},".repeat(1024);
    let many =
        format!("{{'schemaVersion': 2, 'manifests': [{many} {{'digest': 'A', 'size': 1}}]}}");
    check(
        "OCI/index.v1+json",
        &many,
        expect!["the index is over the limit: 1025, at most 1024 entries"],
    );
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "expect![] reads better by value"
)]
fn check_config(text: &str, expected: Expect) {
    let shown = match read_config(expand(text).as_bytes(), 1) {
        Ok(config) => format!("{:#?}", config.image),
        Err(error) => error.to_string(),
    };
    expected.assert_eq(&shown);
}

#[test]
fn a_config_is_read_as_docker_and_buildah_write_it() {
    check_config(
        "{'os': 'linux', 'architecture': 'amd64', 'created': 'x', 'config': {
          'User': 'web:1000', 'Env': ['A=b', 'BROKEN'], 'Cmd': null, 'Entrypoint': ['/bin/x'],
          'ExposedPorts': {'80/tcp': {}, '443/tcp': {}}, 'Volumes': null, 'Labels': {'l': 'v'},
          'WorkingDir': '/srv', 'StopSignal': 'SIGQUIT', 'ArgsEscaped': true},
          'rootfs': {'type': 'layers', 'diff_ids': ['A']}}",
        expect![[r#"
            ImageConfig {
                os: "linux",
                architecture: "amd64",
                entrypoint: [
                    "/bin/x",
                ],
                cmd: [],
                env: [
                    "A=b",
                ],
                working_dir: "/srv",
                user: "web:1000",
                stop_signal: "SIGQUIT",
                volumes: [],
                exposed_ports: [
                    "443/tcp",
                    "80/tcp",
                ],
                labels: {
                    "l": "v",
                },
            }"#]],
    );
}

/// Go reads keys in any case, docker takes a text for a command, containerd knows the kernel's architecture names.
#[test]
fn case_a_config_is_read_as_docker_and_containerd_read_it() {
    check_config(
        "{'OS': 'Linux', 'Architecture': 'x86_64', 'Config': {
          'user': 'web', 'ENV': ['A=b'], 'cmd': ['/bin/x'], 'EntryPoint': 'sh', 'exposedports': {'80/TCP': {}},
          'labels': {'L': 'v', 'l': 'w'}, 'workingDir': '/srv', 'Stopsignal': 'SIGQUIT'},
          'RootFS': {'Type': 'layers', 'Diff_IDs': ['A']}}",
        expect![[r#"
            ImageConfig {
                os: "linux",
                architecture: "amd64",
                entrypoint: [
                    "sh",
                ],
                cmd: [
                    "/bin/x",
                ],
                env: [
                    "A=b",
                ],
                working_dir: "/srv",
                user: "web",
                stop_signal: "SIGQUIT",
                volumes: [],
                exposed_ports: [
                    "80/TCP",
                ],
                labels: {
                    "L": "v",
                    "l": "w",
                },
            }"#]],
    );
    for (name, variant, expected) in [
        ("x86_64", "", "amd64"),
        ("X86-64", "v1", "amd64/v1"),
        ("aarch64", "", "arm64"),
        ("aarch64", "V8", "arm64/v8"),
        ("armhf", "", "arm/v7"),
        ("armel", "", "arm/v6"),
        ("i386", "", "386"),
        ("riscv64", "", "riscv64"),
    ] {
        let text = format!(
            "{{'architecture': '{name}', 'variant': '{variant}', 'os': null,
              'rootfs': {{'type': 'layers', 'diff_ids': ['A']}}}}"
        );
        let config = read_config(expand(&text).as_bytes(), 1).unwrap();
        let platform = Platform {
            architecture: config.image.architecture,
            variant: config.variant,
        };
        assert_eq!(platform.key(), expected);
        let entry = EntryPlatform {
            os: "Linux".to_owned(),
            architecture: name.to_owned(),
            variant: Some(variant.to_owned()),
        };
        assert_eq!(entry.linux().unwrap().key(), expected);
    }
}

#[test]
fn malformed_configs_are_refused_with_the_reason() {
    let config = |run: &str, diff_ids: &str| {
        format!(
            "{{'os': 'linux', 'architecture': 'amd64', 'config': {{{run}}},
              'rootfs': {{'type': 'layers', 'diff_ids': [{diff_ids}]}}}}"
        )
    };
    check_config(
        "{'rootfs': {'type': 'layers', 'diff_ids': ['A']}}",
        expect!["the image config is malformed: it names no architecture"],
    );
    check_config(
        &config("", "'A'").replace("'linux'", "'windows'"),
        expect!["the image config is malformed: it is for `windows`; only Linux images run here"],
    );
    check_config(
        &config("", ""),
        expect!["the image config is malformed: it has 0 diff_ids, the manifest 1 layers"],
    );
    check_config(
        &config("", "'A', 'B'"),
        expect!["the image config is malformed: it has 2 diff_ids, the manifest 1 layers"],
    );
    check_config(
        &config("", "'../x'"),
        expect!["the image config is malformed: `../x` is not a sha256 digest"],
    );
    check_config(
        &config("", "'A'").replace("'layers'", "'other'"),
        expect!["the image config is malformed: its rootfs is not of type `layers`"],
    );
    check_config(
        &config("'User': '4294967296'", "'A'"),
        expect!["the image config is malformed: its User `4294967296` is not USER[:GROUP]"],
    );
    check_config(
        &config("'User': '0:4294967295'", "'A'"),
        expect!["the image config is malformed: its User `0:4294967295` is not USER[:GROUP]"],
    );
    check_config(
        &config("'User': 'a:b:c'", "'A'"),
        expect!["the image config is malformed: its User `a:b:c` is not USER[:GROUP]"],
    );
    check_config(
        &config("'Cmd': ['a\\u0000b']", "'A'"),
        expect!["the image config is malformed: it has a NUL in a command, a variable or a path"],
    );
    check_config(
        &config("'Cmd': 5", "'A'"),
        expect!["the image config is malformed: a command is a list of texts, or one text"],
    );
    check_config(
        &config("'Cmd': ['a'], 'cmd': ['b']", "'A'"),
        expect!["the image config is malformed: it has `cmd` twice, in different case"],
    );
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let digest = digest_of(&bytes);
        let _ = read_document(&bytes, &digest, "host", None, &ImageLimits::default());
        let _ = read_config(&bytes, 1);
    }
}
