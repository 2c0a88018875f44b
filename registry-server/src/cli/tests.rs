//! Every flag reaches the setting that it names.

use std::path::Path;

use super::*;

/// Each flag with a value that is not its default. A flag that is not here fails the test.
const FLAGS: [(&str, &str); 18] = [
    ("listen", "127.0.0.2:7401"),
    ("storage", "memory"),
    ("data-dir", "elsewhere/data"),
    ("ttl-min", "2s"),
    ("ttl-max", "3h"),
    ("hold", "off"),
    ("hold-share", "0.25"),
    ("hold-min-instances", "11"),
    ("hold-time", "7m"),
    ("history-count", "123"),
    ("history-age", "77s"),
    ("history-bytes", "4567"),
    ("segment-bytes", "65537"),
    ("max-streams", "89"),
    ("grace", "1500ms"),
    ("pin-workers", "on"),
    ("log-format", "json"),
    ("log", "warn,registry_server::hub=debug"),
];

fn parsed(flags: &[(&str, &str)]) -> Result<Args, clap::Error> {
    let words = flags.iter().flat_map(|(flag, value)| [format!("--{flag}"), (*value).to_owned()]);
    Args::try_parse_from(std::iter::once("registry-server".to_owned()).chain(words))
}

fn configured(flags: &[(&str, &str)]) -> Result<Config, String> {
    parsed(flags).map_err(|error| error.to_string()).and_then(|args| config(&args))
}

#[test]
fn every_flag_is_listed_here_with_a_value_that_is_not_its_default() {
    let command = command();
    let known: Vec<_> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
    for flag in &known {
        assert!(FLAGS.iter().any(|(listed, _)| listed == flag), "--{flag} has no row in this test");
    }
    for argument in command.get_arguments() {
        let flag = argument.get_long().expect("there are only long flags");
        let (_, value) = FLAGS.iter().find(|(listed, _)| *listed == flag).expect("just found");
        let default = argument.get_default_values().first().and_then(|default| default.to_str());
        assert!(default.is_some_and(|it| it != *value), "--{flag} has the default {value}");
        let environment = argument.get_env().and_then(|name| name.to_str());
        let name = format!("REGISTRY_{}", flag.replace('-', "_").to_uppercase());
        assert!(environment == Some(&*name), "--{flag} is also {environment:?}");
    }
}

#[test]
fn every_flag_reaches_its_setting() {
    let args = parsed(&FLAGS).expect("all of them are good");
    assert_eq!(args.listen, SocketAddr::from(([127, 0, 0, 2], 7401)));
    assert!(matches!(args.pin_workers, Switch::On));
    assert!(matches!(args.log_format, LogFormat::Json));
    assert_eq!(args.log, "warn,registry_server::hub=debug");

    // In full, without `..`: a setting that is added does not compile until it is compared here.
    let Config { storage, data_dir, segment_bytes, core, hub, grpc, grace } =
        config(&args).expect("all of them are good");
    assert_eq!(segment_bytes, 65_537);
    assert_eq!((storage, &*data_dir), (Storage::Memory, Path::new("elsewhere/data")));
    let Settings {
        guard,
        hold_share,
        hold_min_instances,
        hold_time,
        stall_after,
        remembered_services,
        max_overrides,
    } = core;
    assert_eq!((guard, hold_share.to_string().as_str()), (false, "0.25"));
    assert_eq!((hold_min_instances, hold_time), (11, 420_000), "in milliseconds");
    let HubSettings { log, max_views_per_service, remembered_services: remembered_in_hub } = hub;
    assert_eq!(log, LogLimits { count: 123, age: Duration::from_secs(77), bytes: 4_567 });
    let GrpcSettings { ttl, max_streams } = grpc;
    assert_eq!(ttl, TtlBounds { least: Duration::from_secs(2), most: Duration::from_hours(3) });
    assert_eq!((max_streams, grace), (89, Duration::from_millis(1_500)));
    // Without flags of their own.
    let defaults = Config::default();
    assert_eq!(
        (stall_after, remembered_services, max_overrides),
        (defaults.core.stall_after, defaults.core.remembered_services, defaults.core.max_overrides)
    );
    assert_eq!(
        (max_views_per_service, remembered_in_hub),
        (defaults.hub.max_views_per_service, defaults.hub.remembered_services)
    );
}

#[test]
fn without_flags_it_runs_with_the_defaults_of_the_library() {
    let args = parsed(&[]).expect("no flag is required");
    assert_eq!(args.listen, SocketAddr::from(([127, 0, 0, 1], 7400)));
    assert!(matches!(args.log_format, LogFormat::Text) && args.log == "info");
    let config = config(&args).expect("the defaults are good");
    assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
}

#[test]
fn what_is_out_of_bounds_is_refused_with_its_flag_and_what_is_at_them_is_taken() {
    for (flags, says) in [
        (&[("listen", "7400")][..], "--listen"),
        (&[("storage", "disk")], "--storage"),
        (&[("ttl-min", "999ms")], "--ttl-min must be 1s"),
        (&[("ttl-min", "0s")], "--ttl-min must be 1s"),
        (&[("ttl-max", "86401s")], "--ttl-max 24h"),
        (&[("ttl-min", "11s"), ("ttl-max", "10s")], "not below --ttl-min"),
        (&[("ttl-max", "ever")], "--ttl-max"),
        (&[("hold", "maybe")], "--hold"),
        (&[("hold-share", "1.01")], "from 0 to 1"),
        (&[("hold-share", "NaN")], "from 0 to 1"),
        (&[("hold-share", "half")], "not a number"),
        (&[("hold-min-instances", "few")], "--hold-min-instances"),
        (&[("hold-time", "0s")], "--hold off"),
        (&[("history-count", "many")], "--history-count"),
        (&[("history-age", "10")], "--history-age"),
        (&[("history-bytes", "1.5")], "--history-bytes"),
        (&[("history-count", "0")], "--history-count must be 1"),
        (&[("history-count", "10000001")], "to 10000000"),
        (&[("history-age", "999ms")], "--history-age must be 1s"),
        (&[("history-age", "8days")], "to 7days"),
        (&[("history-bytes", "1023")], "--history-bytes must be 1024"),
        (&[("history-bytes", "17179869185")], "to 17179869184"),
        (&[("segment-bytes", "4095")], "--segment-bytes must be 4096"),
        (&[("segment-bytes", "1073741825")], "to 1073741824"),
        (&[("max-streams", "all")], "--max-streams"),
        (&[("grace", "soon")], "--grace"),
        (&[("log-format", "xml")], "--log-format"),
    ] {
        let refused = configured(flags).expect_err(&format!("{flags:?} was taken"));
        assert!(refused.contains(says), "{flags:?}: {refused}");
    }
    for flags in [
        &[("ttl-min", "1s"), ("ttl-max", "24h")][..],
        &[("ttl-min", "10s"), ("ttl-max", "10s")],
        &[("hold-share", "0")],
        &[("hold-share", "1")],
        &[("hold-time", "1ms")],
        &[
            ("history-count", "1"),
            ("history-age", "1s"),
            ("history-bytes", "1024"),
            ("segment-bytes", "4096"),
        ],
        &[("history-count", "10000000"), ("history-age", "7days")],
        &[("history-bytes", "17179869184"), ("segment-bytes", "1073741824")],
    ] {
        configured(flags).unwrap_or_else(|refused| panic!("{flags:?}: {refused}"));
    }
    let negative = Args::try_parse_from(["registry-server", "--hold-share=-0.1"]).expect_err("below 0");
    assert!(negative.to_string().contains("from 0 to 1"), "{negative}");
    let log = parsed(&[("log", "registry_server=loud")]).expect("a filter is read when the log starts");
    assert!(start_log(&log).expect_err("no such level").contains("--log `registry_server=loud`"));
}
