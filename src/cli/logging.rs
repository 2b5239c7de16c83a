//! How a line of the log is written, where no terminal reads it.
//!
//! There is one for each call. What `tracing_subscriber` does for a field, so that it may be coloured, takes longer than the
//! field itself; this writes the same bytes.

use std::error::Error;
use std::fmt::{self, Debug};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, DefaultVisitor, Writer};

/// Writes fields as [`DefaultFields`] does.
#[derive(Debug, Default)]
pub(super) struct Fields;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        if writer.has_ansi_escapes() {
            return DefaultFields::new().format_fields(writer, fields);
        }
        let mut plain = Plain {
            writer,
            is_first: true,
            result: Ok(()),
        };
        fields.record(&mut plain);
        plain.result
    }
}

/// Fields without colours.
struct Plain<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl Plain<'_> {
    fn write(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        if self.result.is_ok() {
            let space = if self.is_first { "" } else { " " };
            self.is_first = false;
            let written = self.writer.write_str(space);
            self.result = written
                .and_then(|()| self.writer.write_str(field.name()))
                .and_then(|()| self.writer.write_char('='))
                .and_then(|()| value(&mut self.writer));
        }
    }

    /// What needs more care than a name and a value: the message, errors with their causes, names that are words of Rust.
    fn leave(&mut self, record: impl FnOnce(&mut DefaultVisitor<'_>)) {
        if self.result.is_ok() {
            let mut whole = DefaultVisitor::new(self.writer.by_ref(), self.is_first);
            record(&mut whole);
            self.is_first = false;
            self.result = tracing_subscriber::field::VisitOutput::finish(whole);
        }
    }
}

fn is_plain(field: &Field) -> bool {
    let name = field.name();
    name != "message" && !name.starts_with("log.") && !name.starts_with("r#")
}

impl Visit for Plain<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(field, |writer| write!(writer, "{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match is_plain(field) {
            true => self.write(field, |writer| write!(writer, "{value:?}")),
            false => self.leave(|whole| whole.record_str(field, value)),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.leave(|whole| whole.record_error(field, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match is_plain(field) {
            true => self.write(field, |writer| write!(writer, "{value:?}")),
            false => self.leave(|whole| whole.record_debug(field, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    /// What is logged, in memory.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Log {
        type Writer = Log;

        fn make_writer(&'a self) -> Log {
            self.clone()
        }
    }

    fn logged(log: &Log, subscriber: impl tracing::Subscriber + Send + Sync) -> String {
        let error = io::Error::other(Box::<dyn Error + Send + Sync>::from("the \u{1b}[31mcause"));
        let chained = anyhow::anyhow!("inside").context("outside \u{1b}[0m");
        let chained: &(dyn Error + 'static) = chained.as_ref();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(
                text = "a \"b\" \u{1b}[31m\n",
                count = 7_u64,
                less = -7,
                share = 0.5,
                yes = true,
                nothing = None::<u64>,
                some = Some("x"),
                shown = %"as it is",
                debugged = ?Some(1),
                error = &error as &dyn Error,
                chained,
                r#type = "word",
                "settled \u{1b}[31m"
            );
            tracing::warn!(only = "fields");
            let span = tracing::info_span!("call", id = 1_u64, name = "n");
            span.in_scope(|| tracing::info!("inside"));
        });
        String::from_utf8(std::mem::take(&mut *log.0.lock().expect("no panic"))).expect("text")
    }

    #[test]
    fn a_line_is_what_it_is_by_default() {
        let log = Log::default();
        for ansi in [false, true] {
            let lines = || {
                tracing_subscriber::fmt()
                    .without_time()
                    .with_ansi(ansi)
                    .with_writer(log.clone())
            };
            let (ours, default) = (
                logged(&log, lines().fmt_fields(Fields).finish()),
                logged(&log, lines().finish()),
            );
            assert_eq!(ours, default);
            assert_eq!(ours.lines().count(), 3, "{ours}");
        }
    }
}
