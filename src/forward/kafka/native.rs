//! The one place that calls librdkafka itself instead of the `rdkafka` crate: handing a record over.
//!
//! The crate looks the topic up by name for every record and copies each header twice before librdkafka copies it; at a
//! million records that is most of what the sink's own thread does. Here a topic is looked up once, and librdkafka makes
//! the only copy. Everything else about a producer stays the crate's.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::ptr::{self, NonNull};

use rdkafka::bindings::{
    RD_KAFKA_MSG_F_COPY, rd_kafka_error_code, rd_kafka_error_destroy, rd_kafka_produceva, rd_kafka_t,
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

/// Copies the record into librdkafka's queue, for the partition that the configured partitioner chooses.
#[inline]
pub fn produce<C: ProducerContext>(
    producer: &BaseProducer<C>,
    topic: &Topic,
    record: &Outgoing<'_>,
) -> Result<(), Code> {
    let memory = |bytes: &[u8]| Field { mem: Memory { ptr: bytes.as_ptr().cast_mut().cast(), size: bytes.len() } };
    let mut fields = [rd_kafka_vu_t { vtype: Kind::RD_KAFKA_VTYPE_END, u: Field { i64_: 0 } }; 6 + HEADERS_MAX];
    let fixed = [
        (Kind::RD_KAFKA_VTYPE_RKT, Field { rkt: topic.handle.as_ptr() }),
        (Kind::RD_KAFKA_VTYPE_MSGFLAGS, Field { i: RD_KAFKA_MSG_F_COPY }),
        (Kind::RD_KAFKA_VTYPE_KEY, memory(record.key)),
        (Kind::RD_KAFKA_VTYPE_VALUE, memory(record.value)),
        (Kind::RD_KAFKA_VTYPE_TIMESTAMP, Field { i64_: record.timestamp_ms }),
        (Kind::RD_KAFKA_VTYPE_OPAQUE, Field { ptr: ptr::without_provenance_mut(record.opaque) }),
    ];
    let headers = record.headers.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| {
        let header = Header { name: name.as_ptr(), val: value.as_ptr().cast(), size: value.len() as isize };
        (Kind::RD_KAFKA_VTYPE_HEADER, Field { header })
    });
    let mut count = 0;
    for (field, (vtype, u)) in fields.iter_mut().zip(fixed.into_iter().chain(headers)) {
        *field = rd_kafka_vu_t { vtype, u };
        count += 1;
    }
    // SAFETY: the client and the topic's handle are alive, `count` fields are filled in, each with the member of the union
    // that its type names, and what they point to is borrowed for the call. F_COPY: nothing is pointed to afterwards.
    let error = unsafe { rd_kafka_produceva(client(producer), fields.as_ptr(), count) };
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: not null, so it is an error that is ours until it is destroyed.
    let code = unsafe { rd_kafka_error_code(error) };
    // SAFETY: it came from `rd_kafka_produceva`, and nobody else has it.
    unsafe { rd_kafka_error_destroy(error) };
    Err(code.into())
}

fn client<C: ProducerContext + ClientContext>(producer: &BaseProducer<C>) -> *mut rd_kafka_t {
    producer.client().native_ptr()
}
