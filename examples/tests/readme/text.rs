//! What can be read off the README without running it.

use crate::{blocks, file, programs};

#[test]
fn its_programs_are_parts_of_the_examples() {
    let sources = [file("examples/src/bin/greeter.rs"), file("examples/src/bin/caller.rs")];
    for block in blocks("rust") {
        let indented: String = block
            .lines()
            .map(|line| if line.is_empty() { "\n".into() } else { format!("    {line}\n") })
            .collect();
        assert!(sources.iter().any(|source| source.contains(&indented)), "no example has\n{block}");
        assert!(block.lines().count() <= 25, "twenty lines or so were promised");
    }
}

#[test]
fn its_settings_are_those_of_the_server() {
    let command = registry_server::cli::command();
    let row = |setting: &clap::Arg| {
        let flag = setting.get_long().expect("every setting has a flag");
        let variable = setting.get_env().expect("every setting has a variable").to_string_lossy();
        let default =
            setting.get_default_values().first().expect("every setting has a default").to_string_lossy();
        let meaning = setting.get_help().expect("every setting is explained");
        let values: Vec<_> =
            setting.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
        let values = if values.is_empty() { String::new() } else { format!(" ({})", values.join(", ")) };
        format!("| `--{flag}` | `{variable}` | `{default}` | {meaning}{values} |\n")
    };
    let rows: String = command.get_arguments().map(row).collect();
    let table = format!("| flag | environment | default | meaning |\n|---|---|---|---|\n{rows}");
    assert!(file("README.md").contains(&table), "the README's table of settings must be\n\n{table}");
}

#[test]
fn each_of_its_commands_is_run() {
    let ci = file(".ci/run");
    let ci: Vec<_> = ci.lines().map(str::trim).filter(|line| !line.starts_with('#')).collect();
    let commands: Vec<_> = blocks("sh").iter().flat_map(|block| block.lines()).map(str::to_owned).collect();
    // `.ci/run` takes this one from the README itself.
    let (tests, others): (Vec<_>, Vec<_>) = commands
        .iter()
        .map(String::as_str)
        .filter(|line| line.starts_with("cargo"))
        .partition(|command| command.starts_with("cargo test "));
    assert_eq!(tests.len(), 1, "one command runs all tests");
    assert!(ci.contains(&"tests=$(grep -x 'cargo test .*' README.md)"), "CI does not take {tests:?}");
    for command in others {
        let by_ci = ci.iter().any(|line| line.contains(command));
        assert!(by_ci || programs::COMMANDS.contains(&command), "nobody runs `{command}`");
    }
    for command in programs::COMMANDS {
        assert!(commands.iter().any(|line| line == command), "the README does not say `{command}`");
    }
}

#[test]
fn its_links_lead_somewhere() {
    for link in file("README.md").split("](").skip(1) {
        let target = link.split(')').next().expect("a link");
        if !target.starts_with("https://") {
            file(target);
        }
    }
}
