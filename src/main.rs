//! The `metricstream` command.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use metricstream::args::{self, Cli, Command, Exit};
use metricstream::config::{self, Config, SecretPlaces};
use metricstream::forward::influx::init;
use metricstream::forward::letters_command;
use metricstream::process::{self, RunError};
use metricstream::{log_command, logging};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Completions { shell } = &cli.command {
        return done(args::write_completions(*shell, &mut std::io::stdout().lock()));
    }
    let path = cli.config_path(|name| std::env::var_os(name));
    let config = match Config::load(path.as_deref()).and_then(|config| config.apply(&cli.overrides())) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("{problems}");
            return Exit::Usage.into();
        }
    };
    let places = SecretPlaces::new(path.as_deref(), std::env::var_os("CREDENTIALS_DIRECTORY").map(Into::into));
    match &cli.command {
        Command::Config => done(std::io::stdout().lock().write_all(config.to_toml().as_bytes())),
        Command::Check => {
            let problems = config::check(&config, &places);
            for problem in &problems {
                eprintln!("{problem}");
            }
            if problems.is_empty() {
                eprintln!("the configuration is good");
            }
            if problems.is_empty() { Exit::Ok.into() } else { Exit::Usage.into() }
        }
        Command::Log(command) => log_command::run(command, &config).into(),
        Command::DeadLetter(command) => letters_command::run(command, &config).into(),
        Command::Influx(args::InfluxCommand::Init(args)) => init::run(args).into(),
        Command::Run(_) => run(&config, &places).into(),
        Command::Completions { .. } => unreachable!("answered above"),
    }
}

fn run(config: &Config, places: &SecretPlaces) -> Exit {
    let clients = match config::resolve_clients(config, places) {
        Ok(clients) => clients,
        Err(problems) => {
            for problem in problems {
                eprintln!("{problem}");
            }
            return Exit::Usage;
        }
    };
    let lines = match logging::start(&config.logging) {
        Ok(lines) => lines,
        Err(error) => {
            eprintln!("log lines cannot be set up: {error}");
            return Exit::Failure;
        }
    };
    match process::run(config, &clients, &lines) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            tracing::error!("{error}");
            match error {
                RunError::Unfit(_) => Exit::Unable,
                RunError::DataDir(metricstream::data_dir::DataDirError::InUse { .. }) | RunError::PortInUse { .. } => {
                    Exit::Refused
                }
                _ => Exit::Failure,
            }
        }
    }
}

fn done(result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => Exit::Ok.into(),
        // `metricstream config | head` is no error.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Ok.into(),
        Err(error) => {
            eprintln!("{error}");
            Exit::Failure.into()
        }
    }
}
