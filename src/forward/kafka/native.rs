//! The one place that calls librdkafka itself instead of the `rdkafka` crate: handing a record over.
//!
//! The crate looks the topic up by name for every record and copies each header twice before librdkafka copies it; at a
//! million records that is most of what the sink's own thread does. Here a topic is looked up once, and librdkafka makes
//! the only copy. Everything else about a producer stays the crate's.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::ptr::{self, NonNull};
use std::time::Duration;

use rdkafka::bindings::{
    RD_KAFKA_MSG_F_COPY, rd_kafka_error_code, rd_kafka_error_destroy, rd_kafka_flush, rd_kafka_produceva, rd_kafka_t,
    rd_kafka_topic_destroy, rd_kafka_topic_new, rd_kafka_topic_t, rd_kafka_vtype_t as Kind,
    rd_kafka_vu_s__bindgen_ty_1 as Field, rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 as Memory,
    rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_2 as Header, rd_kafka_vu_t,
};
use rdkafka::client::ClientContext;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode as Code;

/// What a record has in its headers at most.
pub const HEADERS_MAX: usize = 4;

/// A record as it is handed over; librdkafka copies what it borrows.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    /// Those without a value are left out
    pub headers: [(&'static CStr, &'a [u8]); HEADERS_MAX],
    /// When it was made, since 1970
    pub timestamp_ms: i64,
    /// Comes back with the delivery report
    pub opaque: usize,
}

/// A producer's own handle of a topic. It must go before the producer does.
pub struct Topic {
    handle: NonNull<rd_kafka_topic_t>,
}

// SAFETY: librdkafka's topic handles may be used from any thread; they are counted and locked inside.
unsafe impl Send for Topic {}

impl Topic {
    /// Asks for the topic's leaders in the background. An error is a name that Kafka does not take.
    pub fn new<C: ProducerContext>(producer: &BaseProducer<C>, name: &str) -> Result<Topic, Code> {
        let name = CString::new(name).map_err(|_| Code::InvalidTopic)?;
        // SAFETY: the client lives as long as `producer` is borrowed; the name is copied; no configuration is given, so
        // none changes hands.
        let handle = unsafe { rd_kafka_topic_new(client(producer), name.as_ptr(), ptr::null_mut()) };
        NonNull::new(handle).map(|handle| Topic { handle }).ok_or(Code::InvalidTopic)
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: the handle came from `rd_kafka_topic_new` and is given back once; records on their way hold their own.
        unsafe { rd_kafka_topic_destroy(self.handle.as_ptr()) }
    }
}

/// What `rd_kafka_produceva` reads, filled in anew for each record; only what differs is written.
pub struct Form {
    fields: [rd_kafka_vu_t; FIXED.len() + HEADERS_MAX],
}

const FIXED: [Kind; 6] = [
    Kind::RD_KAFKA_VTYPE_MSGFLAGS,
    Kind::RD_KAFKA_VTYPE_RKT,
    Kind::RD_KAFKA_VTYPE_KEY,
    Kind::RD_KAFKA_VTYPE_VALUE,
    Kind::RD_KAFKA_VTYPE_TIMESTAMP,
    Kind::RD_KAFKA_VTYPE_OPAQUE,
];

impl Form {
    pub fn new() -> Form {
        let empty = rd_kafka_vu_t { vtype: Kind::RD_KAFKA_VTYPE_HEADER, u: Field { i64_: 0 } };
        let mut fields = [empty; FIXED.len() + HEADERS_MAX];
        fields.iter_mut().zip(FIXED).for_each(|(field, kind)| field.vtype = kind);
        fields[0].u.i = RD_KAFKA_MSG_F_COPY;
        Form { fields }
    }
}

/// Copies the record into librdkafka's queue, for the partition that the configured partitioner chooses.
#[inline]
pub fn produce<C: ProducerContext>(
    producer: &BaseProducer<C>,
    topic: &Topic,
    form: &mut Form,
    record: &Outgoing<'_>,
) -> Result<(), Code> {
    let memory = |bytes: &[u8]| Memory { ptr: bytes.as_ptr().cast_mut().cast(), size: bytes.len() };
    let [_, rkt, key, value, timestamp, opaque, headers @ ..] = &mut form.fields;
    rkt.u.rkt = topic.handle.as_ptr();
    key.u.mem = memory(record.key);
    value.u.mem = memory(record.value);
    timestamp.u.i64_ = record.timestamp_ms;
    opaque.u.ptr = ptr::without_provenance_mut(record.opaque);
    let given = record.headers.iter().filter(|(_, value)| !value.is_empty());
    let mut count = FIXED.len();
    for (field, (name, value)) in headers.iter_mut().zip(given) {
        field.u.header = Header { name: name.as_ptr(), val: value.as_ptr().cast(), size: value.len() as isize };
        count += 1;
    }
    // SAFETY: the client and the topic's handle are alive; `count` fields are filled in, each in the member of the union
    // that its type names; what they point to is borrowed for the call. F_COPY: nothing is pointed to afterwards.
    let error = unsafe { rd_kafka_produceva(client(producer), form.fields.as_ptr(), count) };
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: not null, so it is an error that is ours until it is destroyed.
    let code = unsafe { rd_kafka_error_code(error) };
    // SAFETY: it came from `rd_kafka_produceva`, and nobody else has it.
    unsafe { rd_kafka_error_destroy(error) };
    Err(code.into())
}

/// As long as the call lasts, `linger.ms` counts as over for what is queued. Comes back sooner when nothing is on its way.
pub fn hurry<C: ProducerContext>(producer: &BaseProducer<C>, within: Duration) {
    // SAFETY: the client is alive, and librdkafka locks what it looks at. With reports as events, which is how the crate
    // sets producers up, the call only waits: it runs no callback.
    unsafe { rd_kafka_flush(client(producer), within.as_millis() as i32) };
}

fn client<C: ProducerContext + ClientContext>(producer: &BaseProducer<C>) -> *mut rd_kafka_t {
    producer.client().native_ptr()
}
