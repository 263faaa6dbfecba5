// Streams of the loopback accelerator, which are ggml's backends.
#include "loopback_interface.h"

static const char* stream_name(ggml_backend_t backend) {
    return stream_of(backend).device->name.c_str();
}

static void stream_free(ggml_backend_t backend) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.free_stream(&stream_of(backend));
    delete backend;
}

static void stream_set_tensor(ggml_backend_t backend, ggml_tensor* tensor, const void* data, size_t offset,
                              size_t size) {
    State& state = State::get();
    Lock lock(state.mutex);
    Stream& stream = stream_of(backend);
    state.upload(*stream.device, &stream, tensor, data, offset, size);
}

static void stream_get_tensor(ggml_backend_t backend, const ggml_tensor* tensor, void* data, size_t offset,
                              size_t size) {
    State& state = State::get();
    Lock lock(state.mutex);
    Stream& stream = stream_of(backend);
    state.download(*stream.device, &stream, tensor, data, offset, size);
}

static bool is_stream(ggml_backend_t backend) {
    return backend->iface.get_name == stream_name;
}

static bool stream_cpy_tensor(ggml_backend_t backend_src, ggml_backend_t backend_dst, const ggml_tensor* src,
                              ggml_tensor* dst) {
    if (!is_stream(backend_src) || !is_stream(backend_dst) || !is_device_buffer(buffer_of(src)) ||
        !is_device_buffer(buffer_of(dst))) {
        return false;
    }
    State& state = State::get();
    Lock lock(state.mutex);
    Stream& from = stream_of(backend_src);
    Stream& to = stream_of(backend_dst);
    if (memory_of(buffer_of(src)).device != from.device || memory_of(buffer_of(dst)).device != to.device) {
        return false;
    }
    // As on CUDA the copy runs on the source's stream, and the destination's stream waits for it.
    state.copy(*from.device, &from, src, dst);
    if (&from != &to) {
        Event arrival;
        arrival.device = from.device;
        state.record(arrival, from);
        state.wait(arrival, to);
    }
    return true;
}

static void stream_synchronize(ggml_backend_t backend) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.synchronise(stream_of(backend));
}

static ggml_status stream_graph_compute(ggml_backend_t backend, ggml_cgraph* graph) {
    State& state = State::get();
    Lock lock(state.mutex);
    return state.compute(stream_of(backend), graph);
}

static void stream_event_record(ggml_backend_t backend, ggml_backend_event_t event) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.record(*static_cast<Event*>(event->context), stream_of(backend));
}

static void stream_event_wait(ggml_backend_t backend, ggml_backend_event_t event) {
    State& state = State::get();
    Lock lock(state.mutex);
    state.wait(*static_cast<Event*>(event->context), stream_of(backend));
}

ggml_backend_i stream_interface(const loopback_config& config) {
    const bool async = config.async != 0;
    const bool events = config.events != 0;
    return {
        /* .get_name           = */ stream_name,
        /* .free               = */ stream_free,
        /* .set_tensor_async   = */ async ? stream_set_tensor : nullptr,
        /* .get_tensor_async   = */ async ? stream_get_tensor : nullptr,
        /* .cpy_tensor_async   = */ async ? stream_cpy_tensor : nullptr,
        /* .synchronize        = */ stream_synchronize,
        /* .graph_plan_create  = */ nullptr,
        /* .graph_plan_free    = */ nullptr,
        /* .graph_plan_update  = */ nullptr,
        /* .graph_plan_compute = */ nullptr,
        /* .graph_compute      = */ stream_graph_compute,
        /* .event_record       = */ events ? stream_event_record : nullptr,
        /* .event_wait         = */ events ? stream_event_wait : nullptr,
        /* .graph_optimize     = */ nullptr,
    };
}

ggml_guid_t stream_guid() {
    static ggml_guid guid = {0x6c, 0x6f, 0x6f, 0x70, 0x62, 0x61, 0x63, 0x6b,
                             0x2d, 0x73, 0x74, 0x72, 0x65, 0x61, 0x6d, 0x31};
    return &guid;
}
