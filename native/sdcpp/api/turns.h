// Who may use which device: runs that share a runtime device take turns, first come first served, and a context is freed
// when nobody uses its devices. One lock orders it all; nothing of the engine and no callback is called under it.
#pragma once

#include <memory>
#include <vector>

#include "ggml-backend.h"
#include "sdcpp/api/run.h"
#include "sdcpp/api/sdcpp.h"

namespace sdcpp {

// The devices that a run needs for itself; every one of them and the list of devices with `all`.
struct Claim {
    std::vector<ggml_backend_dev_t> devices;
    bool all = false;
};

class Placements;
class Upscaler;

// A model and its life. What is loaded is touched only by who holds the turn of `claim`; the rest is guarded by the lock.
struct Context {
    sd_ctx_t* loaded = nullptr;                  // a model that draws,
    std::shared_ptr<Upscaler> upscaler;          // or an upscaler
    std::shared_ptr<Placements> placements;      // of what is loaded; NULL: nothing is
    Claim claim;
    bool closed = false;
    std::vector<Run*> runs;  // that wait for their turn or have it
    sdcpp_abilities_t abilities = {};
    sdcpp_traits_t traits = {};
    int clip_layers = 0;  // the least that a CLIP text encoder has; 0: there is none
    sample_method_t sampler = SAMPLE_METHOD_COUNT;
    std::vector<scheduler_t> schedulers;  // by sampler
    int upscale_factor = 0;
};

// A run's turn, from construction to destruction if it came. It did not where status() is not SDCPP_OK: the run was
// cancelled or its context closed while it waited, or it is made in a callback and would wait for ever.
class Turn {
public:
    // Waits for a turn, or for the one that closes a context, which comes first.
    Turn(Run& run, const Claim& claim, std::shared_ptr<Context> context = nullptr, bool closing = false);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    sdcpp_status_t status() const { return status_; }

    Run* const run;
    const Claim claim;
    const std::shared_ptr<Context> context;

private:
    sdcpp_status_t take(bool closing);

    const Turn* const outer_;  // the turn in whose callback this one was asked for
    sdcpp_status_t status_;
};

// Registers a new context.
std::shared_ptr<Context> context_new();
// Reads and sets the devices that a context computes on.
Claim context_claim(const Context& context);
void context_claim(Context& context, Claim claim);
// Makes a context's calls fail from now on; false when they did before. Its runs that wait return at once.
bool context_close(Context& context);
bool context_closed(const Context& context);
// Cancels the runs of a context.
void context_cancel(Context& context);
// Frees a closed context now if nobody uses its devices, else when they are free, on the thread that leaves them.
void context_free_later(std::shared_ptr<Context> context);
// Frees what a context has loaded; the caller holds its turn.
void context_unload(Context& context, Run& run);

// Tells whether this is a child that was forked from a process that had used the engine.
bool forked();

}  // namespace sdcpp
