#include "sdcpp/lanes/pictures.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "sdcpp/autoencoder/autoencoder.h"
#include "sdcpp/lanes/own_rng.h"
#include "sdcpp/placement/context_placements.h"
#include "sdcpp/seams/seams.h"

namespace sdcpp {

Pictures::Pictures(int first, int end, const std::function<bool(int)>& draw)
    : draw_(draw),
      end_(end),
      next_(first),
      caller_(*this_lane()),
      placements_(placements_shared()),
      run_(run_current()),
      fills_(fills_anew()) {
    caller_.pictures = this;
}

Pictures::~Pictures() {
    given_up_ = true;
    for (const auto& picture : started_) {
        if (!picture->ended) {
            resume(*picture);
        }
        if (picture->thread.joinable()) {
            picture->thread.join();
        }
    }
    caller_.pictures = nullptr;
}

// --- on the caller's thread ------------------------------------------------------------------------------------------

bool Pictures::run() {
    if (!draw_(next_++)) {
        return false;
    }
    while (!all_drawn()) {
        resume_all();
    }
    if (run_ != nullptr) {
        run_->sampling.picture += static_cast<int>(started_.size());
    }
    return true;
}

size_t Pictures::pending() const {
    return started_.empty() ? static_cast<size_t>(end_ - next_) : 0;
}

bool Pictures::all_drawn() const {
    return std::all_of(started_.begin(), started_.end(), [](const auto& picture) { return picture->ended; });
}

void Pictures::start(size_t more) {
    for (size_t i = 0; i < more && next_ < end_; ++i) {
        auto picture = std::make_unique<Drawn>();
        picture->pictures = this;
        picture->number = next_;
        if (run_ != nullptr) {
            picture->sampling.picture = run_->sampling.picture + static_cast<int>(i) + 1;
        }
        try {
            picture->thread = std::thread([this, &picture = *picture] { main(picture); });
        } catch (const std::system_error&) {
            break;  // no more threads: those that are left are drawn later
        }
        ++next_;
        started_.push_back(std::move(picture));
        resume(*started_.back());
        finish(*started_.back());
    }
}

// Gives a picture the baton, and does meanwhile what it asks for, until it waits for a pass or ends.
void Pictures::resume(Drawn& picture) {
    const auto change_over = [&] {
        if (run_ != nullptr) {
            std::swap(run_->sampling, picture.sampling);
        }
    };
    change_over();
    for (;;) {
        {
            std::unique_lock<std::mutex> lock(mutex_);
            holder_ = &picture;
            passed_.notify_all();
            passed_.wait(lock, [&] { return holder_ == nullptr; });
        }
        const auto* const request = std::exchange(picture.request, nullptr);
        if (request == nullptr) {
            break;
        }
        try {
            (*request)();
        } catch (...) {
            picture.request_error = std::current_exception();
        }
    }
    change_over();
}

// Lets each picture that is drawn go on as far as its next pass, or its end.
void Pictures::resume_all() {
    for (const auto& picture : started_) {
        if (!picture->ended) {
            resume(*picture);
            finish(*picture);
        }
    }
}

// Ends the caller's own picture, too, when one has failed.
void Pictures::finish(Drawn& picture) {
    if (!picture.ended) {
        return;
    }
    picture.thread.join();
    if (picture.error) {
        std::rethrow_exception(picture.error);
    }
    if (!picture.drawn) {
        throw Cancelled();  // why is said already
    }
}

// --- on any ----------------------------------------------------------------------------------------------------------

void Pictures::gather(Lane& lane) {
    if (&lane != &caller_) {
        give_back();
        wait_for_baton(static_cast<Drawn&>(lane));
        return;
    }
    resume_all();
}

std::vector<const Lane*> Pictures::others(const Lane& lane) const {
    std::vector<const Lane*> all{&caller_};
    for (const auto& picture : started_) {
        all.push_back(picture.get());
    }
    const auto own = std::find(all.begin(), all.end(), &lane);
    std::rotate(all.begin(), own, all.end());
    all.erase(all.begin());
    return all;
}

// --- on a picture's own thread ---------------------------------------------------------------------------------------

void Pictures::main(Drawn& picture) {
    try {
        wait_for_baton(picture);
        this_lane() = &picture;
        const RunScope run_scope(run_);
        const PlacementScope placement_scope(placements_);
        const FillingScope filling_scope(fills_);
        picture.drawn = draw_(picture.number);
    } catch (...) {
        picture.error = std::current_exception();
    }
    picture.ended = true;
    give_back();
}

void Pictures::wait_for_baton(Drawn& picture) {
    std::unique_lock<std::mutex> lock(mutex_);
    passed_.wait(lock, [&] { return holder_ == &picture; });
    if (given_up_ && !picture.ended) {
        throw Cancelled();
    }
}

void Pictures::give_back() {
    const std::lock_guard<std::mutex> lock(mutex_);
    holder_ = nullptr;
    passed_.notify_all();
}

void Pictures::ask_caller(Lane& lane, const std::function<void()>& function) {
    if (&lane == &caller_) {
        function();
        return;
    }
    auto& picture = static_cast<Drawn&>(lane);
    picture.request = &function;
    give_back();
    {
        std::unique_lock<std::mutex> lock(mutex_);
        passed_.wait(lock, [&] { return holder_ == &picture; });
    }
    if (const auto error = std::exchange(picture.request_error, nullptr)) {
        std::rethrow_exception(error);
    }
}

// --- what is called by others ----------------------------------------------------------------------------------------

bool each_picture(int count, std::shared_ptr<RNG>& noise, std::shared_ptr<RNG>& sampler,
                  const std::function<bool(int)>& draw) {
    const std::function<bool(int)> draw_own = [&](int picture) {
        renew(noise, sampler);
        return draw(picture);
    };
    for (int next = 0; next < count;) {
        Pictures pictures(next, count, draw_own);
        if (!pictures.run()) {
            return false;
        }
        next = pictures.next();
        if (next < count && !finish_sampled()) {
            return false;
        }
    }
    return true;
}

void on_caller(const std::function<void()>& function) {
    Lane& lane = *this_lane();
    if (lane.pictures != nullptr) {
        lane.pictures->ask_caller(lane, function);
    } else {
        function();
    }
}

}  // namespace sdcpp
