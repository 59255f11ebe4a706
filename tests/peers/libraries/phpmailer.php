<?php
// Do jobs with PHPMailer: reads a list of them, JSON, and prints a list of what came of each.
require '/usr/share/php/libphp-phpmailer/autoload.php';

use PHPMailer\PHPMailer\PHPMailer;

function deliver(array $job): array
{
    $mail = new PHPMailer(true);
    $mail->isSMTP();
    $mail->Host = $job['host'];
    $mail->Port = $job['port'];
    $mail->Timeout = 20;
    $mail->Helo = 'client.example';
    $mail->SMTPSecure = ['starttls' => 'tls', 'implicit' => 'ssl'][$job['tls'] ?? ''] ?? '';
    $mail->SMTPAutoTLS = false;
    $mail->SMTPOptions = $job['tls'] ? ['ssl' => ['cafile' => $job['authority']]] : [];
    if ($job['user']) {
        $mail->SMTPAuth = true;
        $mail->AuthType = $job['mechanism'];
        $mail->Username = $job['user'];
        $mail->Password = $job['password'];
    }
    $mail->dsn = implode(',', $job['dsn']['notify'] ?? []);
    // It composes the message itself: the head is its own, the body is ours.
    [$head, $body] = explode("\r\n\r\n", $job['message'], 2);
    $mail->CharSet = PHPMailer::CHARSET_UTF8;
    $mail->Encoding = PHPMailer::ENCODING_8BIT;
    $mail->setFrom($job['sender']);
    foreach ($job['recipients'] as $recipient) {
        $mail->addAddress($recipient);
    }
    $mail->Subject = 'Grüße';
    $mail->Body = $body;
    try {
        $mail->send();
        return ['accepted' => $job['recipients'], 'refused' => [], 'error' => ''];
    } catch (Exception $error) {
        $refused = array_values(array_filter($job['recipients'], fn ($name) => str_contains($error->getMessage(), $name)));
        $accepted = $refused ? array_values(array_diff($job['recipients'], $refused)) : [];
        return ['accepted' => $accepted, 'refused' => $refused, 'error' => $error->getMessage()];
    }
}

echo json_encode(array_map('deliver', json_decode(stream_get_contents(STDIN), true))), "\n";
