// What the bindings turn into Python exceptions.
#pragma once

#include <stdexcept>
#include <string>

namespace cellmd {

// Becomes cellmd.errors.ArgumentError.
struct ArgumentError : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// Becomes cellmd.errors.ContainerError: a file does not give what it did when it was opened.
struct FileError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Unless the condition holds, an error whose message is made of the parts: texts, numbers and what describes itself.
template <typename... Parts>
void require(bool condition, const Parts&... parts) {
    if (condition) [[likely]]
        return;
    std::string message;
    const auto append = [&](const auto& part) {
        if constexpr (requires { std::to_string(part); })
            message += std::to_string(part);
        else if constexpr (requires { part.describe(); })
            message += part.describe();
        else
            message += part;
    };
    (append(parts), ...);
    throw ArgumentError(message);
}

}  // namespace cellmd
